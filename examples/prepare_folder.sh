#!/usr/bin/env bash
# Prepare a folder of text files as contexts, keep the first for good, and drop the others again.
# Run: examples/prepare_folder.sh [--url URL] [FOLDER]
# Needs the command `adakv` (pip install . in a copy of the repository), and a server that was started with --enable-adakv.
set -euo pipefail

export ADAKV_URL=${ADAKV_URL:-http://localhost:30000} # every `adakv` command below talks to this server
if [ "${1:-}" = --url ]; then
  ADAKV_URL=$2
  shift 2
fi
folder=${1:-$(dirname "$0")/documents}

echo "Prepare every file in $folder, each as a context"
added=$(adakv contexts add "$folder" --keep-ratio 0.5)
echo "$added"
ids=$(cut -d' ' -f1 <<< "$added") # the first column; --json has everything, for scripts that need more

# From now on every prompt that starts with the text of such a file uses its context:
#   curl "$ADAKV_URL/v1/completions" -H 'content-type: application/json' -d '{"prompt": "<the text> ..."}'

printf '\nPin the first: it stays when the pool runs full\n'
adakv contexts pin "$(head -n 1 <<< "$ids")"
adakv contexts list --state ready

printf '\nDrop the others: their slots are free when the requests that use them have ended\n'
others=$(tail -n +2 <<< "$ids")
# shellcheck disable=SC2086  # one word per id
[ -z "$others" ] || adakv contexts drop $others
adakv contexts list --state ready
