"""`kvmkit schema`: the JSON schema of a VM's spec."""

from __future__ import annotations

import argparse
import sys

from kvmkit.cli.verbs import VERBS

SUMMARY = VERBS["schema"].summary


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "It is that of the files `kvmkit run` and `kvmkit create` take, in TOML or JSON.\n\n"
        "example: kvmkit schema > vm.schema.json"
    )


def run(args: argparse.Namespace) -> int:
    import msgspec

    from kvmkit.manager.spec import VmSpec

    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(VmSpec)}
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(schema), indent=2).decode() + "\n")
    return 0
