"""The commands of study.py, one file each: options, help text, and what is printed. The work is done elsewhere."""
