#!/bin/bash
# Puts the release binary and its completions below a prefix: `scripts/install.sh /usr/local`.
set -euo pipefail
prefix=${1:?usage: install.sh PREFIX}
target=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
host=$(rustc -vV | sed -n 's/^host: //p')
binary=$target/$host/release/gantry

install -D -m 0755 "$binary" "$prefix/bin/gantry"
completions() { # SHELL PLACE
    mkdir -p "$prefix/$(dirname "$2")"
    "$binary" completions "$1" > "$prefix/$2"
    chmod 0644 "$prefix/$2"
}
completions bash share/bash-completion/completions/gantry
completions zsh share/zsh/site-functions/_gantry
completions fish share/fish/vendor_completions.d/gantry.fish
echo "gantry is in $prefix/bin"
