"""The command line: one file for each command, and what they share.

`main` is where it begins. What a command does stands in the library; here is only how it is asked
for, and how a mistake is answered.
"""
