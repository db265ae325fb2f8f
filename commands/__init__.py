"""The commands of study.py, one file each: options, help texts and screens; the work is done by the other packages."""
