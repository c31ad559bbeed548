"""The command line: one file for each verb, with no logic of its own.

A verb's module offers SUMMARY (a line), `configure(parser)` and `run(args) -> exit status`. TAKES_COMMAND, when true,
puts what follows `--` in `args.command`. It is imported only when the verb is called.
"""
