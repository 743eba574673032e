"""Video files and frames: read, decoded, written."""
