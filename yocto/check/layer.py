#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Parses meta-coracle with BitBake's own library and holds it against the rules of yocto/README.md.

usage: layer.py ROOT RELEASE SCRATCH METADATA

ROOT is a checkout of the repository, RELEASE a name like wrynose, SCRATCH an empty directory,
METADATA the output of `cargo metadata` for ROOT. Every violation is a line on standard error.
Run by scripts/yocto-check, which says where the library is. Exit: 0 all kept, 1 not.
"""

import glob
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
import types

# BitBake's client of a hash server is not in the package, and is not used here.
for name in ("hashserv", "hashserv.client"):
    sys.modules.setdefault(name, types.ModuleType(name))

import bb.cookerdata
import bb.fetch2
import bb.parse

root, release, scratch, metadata = sys.argv[1:5]
root = os.path.realpath(root)
layer = os.path.join(root, "yocto", "meta-coracle")
stub = os.path.join(root, "yocto", "check", "stub")
failed = False


def violated(sentence):
    global failed
    failed = True
    print("yocto-check: %s: %s" % (release, sentence), file=sys.stderr)


def read(path):
    with open(os.path.join(root, path), encoding="utf-8") as file:
        return file.read()


def git(*arguments):
    command = ["git", "-c", "safe.directory=*", "-C", root, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# --- parsing --------------------------------------------------------------------------------------

class Layers:
    """The layer beside the stand-ins of yocto/check/stub, for one machine and some features."""

    def __init__(self, machine, features="", settings=""):
        top = os.path.join(scratch, "%s-%s-%s" % (release, machine, features or "plain"))
        os.makedirs(os.path.join(top, "conf"), exist_ok=True)
        with open(os.path.join(top, "conf", "bblayers.conf"), "w", encoding="utf-8") as file:
            file.write('STUB_RELEASE = "%s"\nBBPATH = "${TOPDIR}"\nBBFILES = ""\nBBLAYERS = "%s %s"\n'
                       % (release, stub, layer))
        with open(os.path.join(top, "conf", "local.conf"), "w", encoding="utf-8") as file:
            file.write('MACHINE = "%s"\nSTUB_FEATURES = "%s"\n%s\n' % (machine, features, settings))
        with open(os.path.join(top, "conf", "bitbake.conf"), "w", encoding="utf-8") as file:
            file.write('require conf/local.conf\nrequire %s/conf/bitbake.conf\n' % stub)
        os.chdir(top)
        configuration = bb.cookerdata.CookerConfiguration()
        configuration.env = {"BBPATH": top, "PATH": os.environ["PATH"]}
        self.builder = bb.cookerdata.CookerDataBuilder(configuration)
        self.builder.parseBaseConfiguration()
        files = self.builder.data.getVar("BBFILES").split()
        self.files = sorted(found for pattern in files for found in glob.glob(pattern))

    def recipes(self):
        return [file for file in self.files if file.endswith(".bb") and file.startswith(layer)]

    def appends(self, recipe):
        """The bbappends of a recipe, as BitBake matches them."""
        base = os.path.basename(recipe)[:-len(".bb")]
        found = []
        for file in self.files:
            if file.endswith(".bbappend"):
                pattern = os.path.basename(file)[:-len(".bbappend")]
                if base == pattern or ("%" in pattern and base.startswith(pattern.split("%")[0])):
                    found.append(file)
        return found

    def parse(self, recipe):
        return self.builder.parseRecipe(recipe, self.appends(recipe), "coracle")

    def named(self, name):
        for file in self.files:
            if file.endswith(".bb") and os.path.basename(file).split("_")[0].removesuffix(".bb") == name:
                return self.parse(file)
        raise SystemExit("yocto-check: there is no recipe %s" % name)


def value(d, name):
    return d.getVar(name) or ""


# --- rules for every recipe ------------------------------------------------------------------------

def check_recipe(d):
    name = d.getVar("PN")
    if d.getVar("__SKIPPED"):
        violated("%s is left out: %s" % (name, d.getVar("__SKIPPED")))
        return
    for key in d.keys():
        if re.match(r"pkg_(pre|post)(inst|rm)(_ontarget)?(:|$)", key):
            violated("%s has %s: the root file system is read-only" % (name, key))
        if d.getVarFlag(key, "network"):
            violated("%s uses the network in %s" % (name, key))
        if key.startswith("SRCREV") and "AUTO" in (d.getVar(key) or ""):
            violated("%s has no fixed revision: %s is %s" % (name, key, d.getVar(key)))
    if (d.getVar("LICENSE") or "CLOSED") == "CLOSED":
        violated("%s has no licence" % name)


def check_text():
    """What a parse may not show: names that no file of the layer has a use for."""
    for folder, _, names in os.walk(layer):
        for name in names:
            if not name.endswith((".bb", ".bbappend", ".bbclass", ".inc", ".conf")):
                continue
            path = os.path.join(folder, name)
            with open(path, encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if re.search(r"AUTOREV|pkg_post|\[network\]", line):
                        violated("%s:%d: %s" % (os.path.relpath(path, root), number, line.strip()))


# --- the agent's recipe ----------------------------------------------------------------------------

def check_crates(d):
    """The crates that BitBake fetches are those of Cargo.lock, each with its checksum."""
    lock = tomllib.loads(git("show", "HEAD:Cargo.lock"))
    wanted = {"%s-%s.crate" % (package["name"], package["version"]): package["checksum"]
              for package in lock["package"] if "source" in package}
    found = {}
    for address in d.getVar("SRC_URI").split():
        if address.startswith("crate://"):
            data = bb.fetch2.FetchData(address, d)
            # By this name alone, as the fetcher of scarthgap looks for it.
            found[data.parm["downloadfilename"]] = data.parm.get("%s.sha256sum" % data.parm["name"])
            if data.sha256_expected != found[data.parm["downloadfilename"]]:
                violated("the fetcher does not find the checksum of %s" % address)
    for name in sorted(wanted.keys() - found.keys()):
        violated("%s of Cargo.lock is not fetched" % name)
    for name in sorted(found.keys() - wanted.keys()):
        violated("%s is fetched and not in Cargo.lock" % name)
    for name in sorted(found.keys() & wanted.keys()):
        if found[name] != wanted[name]:
            violated("%s is fetched with another checksum than Cargo.lock has" % name)
    return len(found)


def check_agent(d):
    head = git("rev-parse", "HEAD").strip()
    if d.getVar("SRCREV") != head:
        violated("SRCREV of coracle is %s, the checkout is at %s" % (d.getVar("SRCREV"), head))
    manifest = tomllib.loads(read("Cargo.toml"))
    version = manifest["workspace"]["package"]["version"]
    if d.getVar("PV").split("+")[0] != version:
        violated("PV of coracle is %s, the version in Cargo.toml %s" % (d.getVar("PV"), version))
    license_sum = hashlib.md5(read("LICENSE").encode(), usedforsecurity=False).hexdigest()
    if license_sum not in value(d, "LIC_FILES_CHKSUM"):
        violated("LIC_FILES_CHKSUM of coracle is not that of LICENSE")

    packages = d.getVar("PACKAGES").split()
    for part in ("", "-completions", "-diagnostics", "-doc", "-mark-good", "-ptest", "-reference", "-watchdog"):
        if "coracle" + part not in packages:
            violated("there is no package coracle%s" % part)
    # The class base, which turns options into dependencies, is not among the stand-ins.
    options = d.getVarFlags("PACKAGECONFIG") or {}
    depends = " ".join(options.get(option, "") for option in value(d, "PACKAGECONFIG").split())
    for needed in ("virtual-containerd", "virtual-runc", "cni"):
        if needed not in re.split(r"[ ,]+", depends):
            violated("coracle does not depend on %s" % needed)
    if d.getVar("CARGO_PROFILE_DIST_STRIP") != "none" or "profile.dist" not in read("Cargo.toml"):
        violated("coracle is not built with the profile dist, its symbols split off by the package")

    agent = tomllib.loads(read("agent/Cargo.toml"))
    features = agent.get("features", {})
    # What only an example asks for is a developer's, and changes nothing that is installed.
    of_examples = {feature for example in agent.get("example", []) for feature in example.get("required-features", [])}
    for feature in features.keys() - {"default"} - of_examples:
        if "--features %s" % feature not in options.get(feature, ""):
            violated("the cargo feature %s has no PACKAGECONFIG[%s]" % (feature, feature))
    for option, stated in options.items():
        asked = re.search(r"--features (\S+?)(,|$)", stated or "")
        if asked and asked.group(1) not in features:
            violated("PACKAGECONFIG[%s] asks for a cargo feature that is not there" % option)

    groups = re.findall(r"^g (\S+)", read("systemd/sysusers.d/coracle.conf"), re.MULTILINE)
    added = [entry.split()[-1] for entry in value(d, "GROUPADD_PARAM:coracle").split(";") if entry.split()]
    if groups != added:
        violated("groups of sysusers.d are %s, GROUPADD_PARAM has %s" % (groups, added))

    # What do_install and do_install_ptest take from the source is there.
    for path in re.findall(r"\$\{S\}/(\S+)", d.getVar("do_install", False) + d.getVar("do_install_ptest", False)):
        if not glob.glob(os.path.join(root, path.rstrip("\\"))):
            violated("coracle installs %s, and there is no such file" % path)


def check_licences(d):
    """Every crate that is linked into the agent may be used under a licence that the recipe names."""
    stated = set(re.split(r"[ &]+", d.getVar("LICENSE")))
    with open(metadata, encoding="utf-8") as file:
        cargo = json.load(file)
    packages = {package["id"]: package for package in cargo["packages"]}
    nodes = {node["id"]: node for node in cargo["resolve"]["nodes"]}
    waiting = [id for id, package in packages.items() if package["name"] == "coracle"]
    linked = set()
    while waiting:
        id = waiting.pop()
        if id not in linked:
            linked.add(id)
            waiting += [dep["pkg"] for dep in nodes[id]["deps"]
                        if any(kind["kind"] is None for kind in dep["dep_kinds"])]
    for id in sorted(linked):
        package = packages[id]
        expression = package["license"] or ""
        for every in re.split(r" AND ", expression.replace("/", " OR ")):
            choices = {word for word in re.findall(r"[A-Za-z0-9.+-]+", every)} - {"OR", "WITH"}
            if not choices & stated:
                violated("%s is under %s, which LICENSE of coracle does not name"
                         % (package["name"], expression or "no stated licence"))


def check_source_elsewhere(settings, wanted):
    """EXTERNALSRC and a missing revision: the crates follow, or the recipe is left out with a reason."""
    try:
        d = Layers("qemuarm64", wanted.replace(" ", "-"), settings).named("coracle")
    except bb.parse.SkipRecipe as reason:
        return str(reason)
    return d.getVar("__SKIPPED") or d.getVar("SRC_URI")


# --- what the layer does to others -----------------------------------------------------------------

def check_others(plain, asked):
    kernel = plain.named("linux-yocto")
    if kernel.getVar("SRC_URI") or kernel.getVar("KERNEL_FEATURES"):
        violated("linux-yocto is changed without the distribution feature coracle")
    kernel = asked.named("linux-yocto")
    if "file://coracle-kmeta;type=kmeta" not in value(kernel, "SRC_URI"):
        violated("linux-yocto does not get the kernel configuration")
    if "features/coracle/coracle.scc" not in value(kernel, "KERNEL_FEATURES"):
        violated("linux-yocto does not merge the kernel configuration")
    if "do_coracle_kernel_check" not in (kernel.getVar("__BBTASKS", False) or []):
        violated("linux-yocto does not check its configuration")

    wanted = {
        "rauc": ("coracle-mark-good-rauc", "rauc-mark-good"),
        "swupdate": ("coracle-mark-good-swupdate", None),
    }
    for name, (marker, removed) in wanted.items():
        with_feature = value(asked.named(name), "RRECOMMENDS:%s" % name).split()
        without = value(plain.named(name), "RRECOMMENDS:%s" % name).split()
        if marker not in with_feature or removed in with_feature:
            violated("%s does not leave marking to the health gate" % name)
        if marker in without or (removed and removed not in without):
            violated("%s is changed without the distribution feature coracle" % name)


def check_machine():
    layers = Layers("coracle-x86-64", "coracle")
    image = layers.named("coracle-image")
    types_ = value(image, "IMAGE_FSTYPES").split()
    for wanted in ("wic.vmdk", "wic.vdi", "wic.qcow2", "wic.vhdx"):
        if wanted not in types_:
            violated("coracle-x86-64 makes no %s" % wanted)
    check_image(image, "coracle-efi.wks.in")
    kernel = layers.named("linux-yocto")
    if not re.fullmatch(value(kernel, "COMPATIBLE_MACHINE"), "coracle-x86-64"):
        violated("linux-yocto does not build for coracle-x86-64")
    if "coracle-hypervisors.scc" not in value(kernel, "KERNEL_FEATURES"):
        violated("the kernel of coracle-x86-64 lacks the hypervisors' devices")


def check_image(image, partitions):
    if "read-only-rootfs" not in value(image, "IMAGE_FEATURES").split():
        violated("the image's root is writable")
    path = value(image, "WKS_FILE")
    if os.path.basename(path) != partitions:
        violated("%s is partitioned by %s, not %s" % (image.getVar("MACHINE"), path, partitions))
        return
    with open(path, encoding="utf-8") as file:
        lines = [image.expand(line) for line in file if line.startswith(("part", "$"))]
    text = "".join(lines)
    if "${" in text:
        violated("%s names a variable that is not set: %s" % (partitions, text))
    for label in ("root", "factory", "data"):
        if len(re.findall(r"--label %s( |$)" % label, text, re.MULTILINE)) != 1:
            violated("%s has not one partition %s" % (partitions, label))
    plugin = "bootimg-efi" if release == "scarthgap" else "bootimg_efi"
    if "bootimg" in text and plugin not in text:
        violated("%s does not use %s, as wic of %s calls it" % (partitions, plugin, release))


def main():
    check_text()
    plain = Layers("qemuarm64")
    asked = Layers("qemuarm64", "coracle")
    recipes = asked.recipes()
    for recipe in recipes:
        check_recipe(asked.parse(recipe))
    agent = asked.named("coracle")
    crates = check_crates(agent)
    check_agent(agent)
    check_licences(agent)
    check_others(plain, asked)
    check_image(asked.named("coracle-image"), "coracle-plain.wks.in")
    check_machine()

    said = check_source_elsewhere('EXTERNALSRC = "%s"' % root, "externalsrc")
    if said.count("crate://") != crates:
        violated("with EXTERNALSRC, the crates are not those of its Cargo.lock: %.200s" % said)
    said = check_source_elsewhere('SRCREV = "%s"' % ("0" * 40), "revision not there")
    if "the source cannot be told" not in said:
        violated("a revision that is not there is not noticed: %.200s" % said)
    said = check_source_elsewhere('CORACLE_ROOT = "%s"' % scratch, "no checkout")
    if "the source cannot be told" not in said:
        violated("a layer outside a checkout is not noticed: %.200s" % said)

    if not failed:
        print("yocto-check: %s: %d recipes parsed with BitBake's library %s; %d crates with checksums"
              % (release, len(recipes), bb.__version__, crates))
    sys.exit(1 if failed else 0)


main()
