# SPDX-License-Identifier: Apache-2.0
#
# Which revision of the repository is built, and which crates its Cargo.lock names. Nothing of this
# is kept in a file of the layer, so nothing of it can be stale.

import functools
import os
import re
import subprocess


class SourceError(Exception):
    """The repository, or its Cargo.lock, cannot be read."""


def _git(root, *arguments):
    # The checkout may belong to another user than the one who builds.
    command = ["git", "-c", "safe.directory=*", "-C", root, *arguments]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    except OSError as error:
        raise SourceError("git cannot be run: %s" % error) from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise SourceError("git %s in %s: %s" % (" ".join(arguments), root, said))
    return done.stdout.decode()


def head(root):
    """The commit that is checked out in the repository at root."""
    return _git(root, "rev-parse", "--verify", "HEAD^{commit}").strip()


@functools.lru_cache(maxsize=None)
def _lock_at_commit(root, commit):
    return _git(root, "show", "%s:Cargo.lock" % commit)


def lock_at(root, revision):
    """The text of Cargo.lock at a revision of the repository at root."""
    # Asked for whenever SRC_URI is expanded. Only what a commit holds can never change.
    if re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        return _lock_at_commit(root, revision)
    return _git(root, "show", "%s:Cargo.lock" % revision)


def lock_in(tree):
    """The text of Cargo.lock in an unpacked tree."""
    try:
        with open(os.path.join(tree, "Cargo.lock"), encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise SourceError("no Cargo.lock in %s: %s" % (tree, error)) from error


_FIELD = re.compile(r'^(name|version|source|checksum) = "([^"]*)"$', re.MULTILINE)
_REGISTRY = re.compile(r"^registry\+https://[^ ]*/([A-Za-z0-9.-]+)-index$")


def crates(lock):
    """What must be fetched for a Cargo.lock: a list of (registry, name, version, sha256).

    The file is written by cargo alone and so has one form; tomllib is not in every Python that
    scarthgap may run on. Packages of the workspace have no source and are left out.
    """
    stated = re.search(r"^version = (\d+)$", lock, re.MULTILINE)
    if not stated or stated.group(1) not in ("3", "4"):
        raise SourceError("Cargo.lock is of an unknown version")
    found = []
    for block in lock.split("[[package]]")[1:]:
        fields = dict(_FIELD.findall(block))
        named = "%s %s" % (fields.get("name"), fields.get("version"))
        if "source" not in fields:
            continue
        registry = _REGISTRY.match(fields["source"])
        if not registry:
            raise SourceError("%s: crates are taken from a registry only, not from %s"
                              % (named, fields["source"]))
        if not re.fullmatch(r"[0-9a-f]{64}", fields.get("checksum", "")):
            raise SourceError("%s has no checksum in Cargo.lock" % named)
        found.append((registry.group(1), fields["name"], fields["version"], fields["checksum"]))
    if not found:
        raise SourceError("Cargo.lock names no crates")
    return found


def addresses(lock):
    """The crates of a Cargo.lock as addresses for BitBake's fetcher, each with its checksum.

    The fetcher names a crate NAME-VERSION; that of scarthgap finds a checksum only under this name.
    """
    return ["crate://{0}/{1}/{2};{1}-{2}.sha256sum={3}".format(*crate) for crate in crates(lock)]


def revision(d):
    """For SRCREV: what is checked out where the layer lies, or INVALID where that cannot be told."""
    try:
        return head(d.getVar("CORACLE_ROOT"))
    except SourceError:
        return "INVALID"


def lock(d):
    """The Cargo.lock of what is built: of EXTERNALSRC, or of SRCREV."""
    tree = d.getVar("EXTERNALSRC")
    if tree:
        return lock_in(tree)
    return lock_at(d.getVar("CORACLE_ROOT"), d.getVar("SRCREV"))


def src_uri(d):
    """For SRC_URI: the crates. Empty where they cannot be told; problem() then says why."""
    try:
        return " ".join(addresses(lock(d)))
    except SourceError:
        return ""


def problem(d):
    """Why the recipe cannot be built, or None."""
    try:
        addresses(lock(d))
    except SourceError as error:
        return str(error)
    return None
