"""A GPU measured in minutes: one command whose items run in order of importance, each result in a file as it comes."""
