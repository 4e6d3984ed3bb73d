#!/usr/bin/env bash
# To be sourced. again COMMAND...: three times where CI runs, where a network that was away for a moment would cost the
# whole run; not with check=yes, where nothing is fetched. Tells by `say`, which the script that sources it has.
again() {
    local pause
    for pause in 5 20; do
        "$@" && return 0
        [ "${CI:-}" = true ] && [ "${check:-no}" = no ] || return 1
        say "$1 failed; once more in $pause seconds"
        sleep "$pause"
    done
    "$@"
}
