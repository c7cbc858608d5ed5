"""The commands of the command line, one file each: parse, call, print. Slow imports are inside the functions."""
