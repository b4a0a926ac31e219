# The source of what is built from Coracle's repository: one revision of it, and the crates that the
# Cargo.lock of this very revision names, each with its checksum.
#
# The layer is part of the repository, so the revision is the one that is checked out where the layer
# lies: pinning the layer (as kas, repo or a submodule do) pins the source. To build another one:
#
#   SRCREV:pn-coracle = "..."            a commit that the layer's checkout also knows
#   CORACLE_SRC_URI = "git://${CORACLE_ROOT};protocol=file;nobranch=1"
#                                        fetch from the checkout itself: commits not yet published
#   INHERIT += "externalsrc"
#   EXTERNALSRC:pn-coracle = "/path"     a working tree as it is, with changes not yet committed

CORACLE_ROOT ?= "${@os.path.realpath(os.path.join(d.getVar('CORACLE_LAYERDIR'), '..', '..'))}"
CORACLE_ROOT[doc] = "The checkout of Coracle's repository that says which revision and crates are built"
CORACLE_SRC_URI ?= "git://github.com/coracle-project/coracle.git;protocol=https;nobranch=1"
CORACLE_SRC_URI[doc] = "Where Coracle's repository is fetched from; the revision is SRCREV"

CORACLE_CRATES = "${@coracle.source.src_uri(d)}"
CORACLE_CRATES[vardepvalue] = "${CORACLE_CRATES}"
CORACLE_CRATES[vardepsexclude] += "CORACLE_ROOT"

# No name= here: the class cargo takes a git source with one for a dependency to be patched.
SRC_URI = "${CORACLE_SRC_URI};destsuffix=${BP} ${CORACLE_CRATES}"

SRCREV ?= "${@coracle.source.revision(d)}"
SRCREV[vardepvalue] = "${SRCREV}"
SRCREV[vardepsexclude] += "CORACLE_ROOT"

S = "${UNPACKDIR}/${BP}"

# The checkout may have moved since the recipe was last parsed.
BB_DONT_CACHE = "1"

# nooelint: oelint.task.noanonpython - only here can the recipe be left out with a reason
python () {
    reason = coracle.source.problem(d)
    if reason:
        raise bb.parse.SkipRecipe(
            "the source cannot be told: %s. The layer must lie in a git checkout of Coracle's "
            "repository that has this revision, or EXTERNALSRC be set" % reason)
}
