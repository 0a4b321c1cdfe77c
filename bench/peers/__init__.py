"""What we are measured beside. Each module sets its program up from public packages, in a folder that is kept, and times it."""
