#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which crates ask for a newer Rust than there is.

usage: cargo metadata --locked --format-version 1 | rust.py VERSION

Judges rust-version of every crate in Cargo.lock. Exit: 0 none, 1 some, named on standard output.
"""

import json
import sys


def number(version):
    """1.85 and 1.85.0 alike, as three numbers."""
    parts = [int(part) for part in version.split("-")[0].split(".")]
    return tuple(parts + [0] * (3 - len(parts)))


there = number(sys.argv[1])
packages = json.load(sys.stdin)["packages"]
stated = [package for package in packages if package["rust_version"]]
too_new = ["%s %s asks for %s" % (package["name"], package["version"], package["rust_version"])
           for package in stated if number(package["rust_version"]) > there]
if too_new:
    print("; ".join(too_new))
    sys.exit(1)
most = max(stated, key=lambda package: number(package["rust_version"]))
print("no crate asks for a newer Rust than %s (the most: %s, by %s; %d of %d crates state one)"
      % (sys.argv[1], most["rust_version"], most["name"], len(stated), len(packages)))
