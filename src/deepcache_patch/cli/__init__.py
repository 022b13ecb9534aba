"""The command line: one file for each command, and what the commands share.

`main` is where it begins: it finds the command and answers mistakes. Each command has a module of
its own name. They share `options` (every option, defined once), `names`, `arguments` and `loras`
(what a person may type there), `files` (what is read and written), `loading` and `request` (from
the options to a pipeline and its call), `mistakes` and `terminal` (how something is told).
What a command does stands in the library.
"""
