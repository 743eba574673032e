"""What a run needs before it starts: boxes, memory, operations."""
