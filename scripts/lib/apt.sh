# Packages by name without touching the system's apt: sourced by scripts/setup and scripts/cross,
# which define `say` and `fail`.
# shellcheck shell=bash

# A mirror can be in the middle of a sync: what fails now may be there in half a minute.
retried() {
    local attempt pause tries=4
    for ((attempt = 1; attempt <= tries; attempt++)); do
        "$@" && return
        pause=$((attempt * 10))
        [ "$attempt" = "$tries" ] || { say "'$1' failed; again in $pause s"; sleep "$pause"; }
    done
    return 1
}

codename() { . /etc/os-release && echo "${VERSION_CODENAME:-}"; }

# The address of the archive that the system itself uses for a release; nothing if it uses none.
# The main archive and the one of security fixes can both say "bookworm", hence the second test.
archive_of() {
    local site release component
    while read -r site release component; do
        [ "$release" = "$1" ] && [ "$component" = main ] || continue
        case $1:$site in
            *-security:*) ;;
            *security*) continue ;;
        esac
        echo "${site%/}"
        return
    done < <(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages')
}

# The main archive's address as the system itself uses it.
mirror() {
    local url
    url=$(archive_of "$(codename)")
    [ -n "$url" ] || fail "no package source of this system is a Debian main archive: name one in /etc/apt/sources.list.d"
    echo "$url"
}

# private_apt DIR SUITE...: an apt of its own in DIR (configuration: DIR/apt.conf) for these suites.
# A SUITE-security is taken from where the system takes it, and left out if it takes none.
private_apt() {
    local dir=$1 main url suite keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    shift
    [ -r "$keyring" ] || fail "$keyring is missing: install debian-archive-keyring"
    mkdir -p "$dir"/{lists/partial,cache/archives/partial,log}
    : >"$dir/status"
    main=$(mirror)
    for suite in "$@"; do
        case $suite in
            *-security) url=$(archive_of "$suite") ;;
            *) url=$main ;;
        esac
        [ -z "$url" ] || echo "deb [signed-by=$keyring] $url $suite main"
    done >"$dir/sources.list"
    cat >"$dir/apt.conf" <<CONF
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Update::Pre-Invoke;
#clear DPkg;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::CNF;
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "$dir";
Dir::State::lists "$dir/lists";
Dir::State::status "$dir/status";
Dir::Cache "$dir/cache";
Dir::Cache::archives "$dir/cache/archives";
Dir::Log "$dir/log";
APT::Sandbox::User "root";
// A mirror that lags behind will do; signatures are checked all the same.
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
CONF
}
