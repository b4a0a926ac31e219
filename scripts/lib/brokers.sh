# MQTT brokers of other suites, side by side, nothing installed: sourced by scripts/setup, after
# apt.sh. Each is unpacked with all it depends on into a root of its own, in which it is run.
# shellcheck shell=bash

# NAME:SUITE:PACKAGE:VERSION:FURTHER PACKAGES, the version as a pattern; the further ones are what
# its own scripts take for granted.
broker_kinds=(
    "mosquitto-2.0:trixie:mosquitto:2.0.2*:"
    "mosquitto-2.1:sid:mosquitto:2.1.*:"
    "rabbitmq-4.0:trixie:rabbitmq-server:4.0.*:dash coreutils sed grep mawk hostname"
)

# One try at fetching and unpacking one of them.
fetch_broker() {
    local dir=$1 name=$2 suite=$3 package=$4 pattern=$5 further=$6 found deb
    local apt="$dir/apt.$suite"
    local conf="$apt/apt.conf" part="$dir/$name.part"
    private_apt "$apt" "$suite"
    apt-get -q -c "$conf" -o APT::Update::Error-Mode=any update || return
    found=$(apt-cache -c "$conf" policy "$package" | sed -n 's/^  Candidate: //p')
    # shellcheck disable=SC2053
    [[ $found = $pattern ]] || { say "$suite has $package $found, not $pattern"; return 1; }
    # shellcheck disable=SC2086
    apt-get -q -c "$conf" -y --no-install-recommends --download-only install "$package" $further || return
    rm -rf "$part" && mkdir -p "$part"/{usr/{bin,sbin,lib,lib64},dev,proc,run,tmp,etc,var/tmp}
    for deb in bin sbin lib lib64; do ln -s "usr/$deb" "$part/$deb"; done
    for deb in "$apt"/cache/archives/*.deb; do
        # Through a pipe, and not by `dpkg -x`, which would put a directory in place of a link.
        dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$part" \
            --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' || return
    done
    rm -f "$apt"/cache/archives/*.deb
    # Debian's `sh` and `awk` are alternatives, which only an installation makes.
    [ -e "$part/usr/bin/sh" ] || ln -s dash "$part/usr/bin/sh"
    [ -e "$part/usr/bin/awk" ] || [ ! -e "$part/usr/bin/mawk" ] || ln -s mawk "$part/usr/bin/awk"
    ldconfig -r "$part" || return
    echo '127.0.0.1 localhost' >"$part/etc/hosts"
    printf 'root:x:0:0:root:/root:/bin/sh\n' >"$part/etc/passwd"
    printf 'root:x:0:\n' >"$part/etc/group"
    echo "$package $found" >"$part/.packages"
    rm -rf "${dir:?}/$name" && mv "$part" "$dir/$name" || return
    say "$package $found in $dir/$name"
}

# brokers DIR [NAME...]: those of that name, or all.
brokers() {
    local dir=$1 entry name suite package pattern further
    shift
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    exec 9>"$dir/.lock"
    flock 9
    for entry in "${broker_kinds[@]}"; do
        IFS=: read -r name suite package pattern further <<<"$entry"
        [ $# = 0 ] || [[ " $* " == *" $name "* ]] || continue
        [ ! -e "$dir/$name/.packages" ] || continue
        retried fetch_broker "$dir" "$name" "$suite" "$package" "$pattern" "$further" \
            || fail "could not fetch $name into $dir (see the messages above)"
        rm -rf "$dir/apt.$suite"
    done
}
