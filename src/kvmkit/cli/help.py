"""`kvmkit help [VERB | TOPIC]`."""

from __future__ import annotations

import argparse

from kvmkit.cli.topics import TOPICS
from kvmkit.cli.verbs import VERBS

SUMMARY = VERBS["help"].summary


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="*", metavar="VERB|TOPIC", help="what to explain")


def run(args: argparse.Namespace) -> int:
    if not args.what:
        print(overview())
        return 0
    what = args.what[0]
    if what in TOPICS and len(args.what) == 1:
        print(TOPICS[what].text.strip())
        return 0
    from kvmkit.cli.main import parser_of
    from kvmkit.cli.parser import nearest
    from kvmkit.errors import BadInput

    if what not in VERBS:
        raise BadInput(f"no verb or topic {what!r}{nearest(what, [*VERBS, *TOPICS])} (see `kvmkit help`)")
    parser = parser_of(what)
    if len(args.what) > 1:
        parser.parse_args([*args.what[1:], "--help"])  # of a part of the verb: prints it, and exits
    print(parser.format_help().rstrip())
    return 0


def overview() -> str:
    """The list of verbs and topics."""
    width = max(map(len, [*VERBS, *TOPICS])) + 2
    lines = ["usage: kvmkit VERB [options]", "       kvmkit --version", ""]
    lines += [f"  {name:<{width}}{verb.summary}" for name, verb in VERBS.items()]
    lines += ["", "topics, for `kvmkit help`:"]
    lines += [f"  {name:<{width}}{topic.summary}" for name, topic in TOPICS.items()]
    lines += [
        "",
        "examples:",
        "  kvmkit run                       a shell in a small Debian, in a VM of its own",
        "  kvmkit run -- uname -a           one command in it; its output and exit status are yours",
        "  kvmkit help run                  the options of a verb",
    ]
    return "\n".join(lines)
