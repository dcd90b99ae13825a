#!/usr/bin/env bash
# Fetches Code Llama checkpoints through the signed URL of Meta's e-mail, verifies them, and continues
# what was cut off. `bash download.sh --help` says how to use it.
#
# The URL's query is a password. It lives in shell variables that are not exported and reaches curl or
# wget through their standard input: nothing of it stands in an argument list, an environment or a file.
# What curl and wget print is never shown, because both quote addresses in their messages.
#
# Runs with bash 3.2 (macOS): no associative arrays, and empty arrays are expanded with a guard.
set +aefkvxC # as SHELLOPTS may have them: `bash -x` would print the URL, `bash -a` export it
set +o posix # in which ulimit counts in other units
set -u
# An exported name stays exported when it gets another value: none of this script's own may be one, or the URL
# would reach the environment of every program that it starts.
export -n CODELLAMA_URL
# shellcheck disable=SC2046
unset $(env | LC_ALL=C sed -n -e '/^[a-z][a-z_]*_proxy=/d' -e 's/^\([a-z][A-Za-z0-9_]*\)=.*/\1/p')

SELF=${BASH_SOURCE[0]-} # empty where the script is read from a pipe

NAMES="7b 7b-Python 7b-Instruct 13b 13b-Python 13b-Instruct 34b 34b-Python 34b-Instruct 70b 70b-Python 70b-Instruct"
REFETCHES=2  # after a checksum mismatch, for one file
TRIES=5      # in a row that bring less than
SLOWEST=1000 # bytes a second

help() {
    cat <<'HELP'
Usage: bash download.sh [options]

Fetches Code Llama checkpoints into DIR/CodeLlama-NAME. Asks for what is not given. A second run continues
the first: finished files are verified and kept, *.part files are continued.

  --url URL        the link of Meta's e-mail, in single quotes: 'https://download2.llamameta.net/*?Policy=...'
  --models LIST    names with commas between them, such as 7b,13b-Instruct; or all
  --dir DIR        where the folders of the models go (default: the current folder)
  --jobs N         files fetched at once, 1 to 16 (default: 1)
  --list           print the names of the models and their sizes, and end
  --check-only     verify what is in DIR against checklist.chk, without a request, and end
  --dry-run        ask the server for the sizes, print what would be fetched, and write nothing
  --help           print this text

The same from the environment: CODELLAMA_URL, CODELLAMA_MODELS, CODELLAMA_DIR, CODELLAMA_JOBS, and
CODELLAMA_ACTION=list, check-only or dry-run. An option wins over its variable. Beside them:

  CODELLAMA_HOST     a mirror to accept in the place of https://download*.llamameta.net, as scheme://host:port;
                     the URL then begins with it, holds the *, and needs no Policy=
  CODELLAMA_FETCHER  curl or wget (default: curl where there is one)
  CODELLAMA_MD5      md5sum, md5 or python3 (default: the first of them there is)
  CODELLAMA_WAIT     seconds before a broken connection is tried again (default: 2)
  CODELLAMA_PATIENCE seconds in which a connection must bring 1000 bytes each, or it counts as broken (default: 60)

The URL's query is secret and is never printed. A URL given as --url is seen in the process list until this
script has started (to its end, where bash reads it from a pipe), and stays in the shell's history; pasted at the
prompt, it is seen nowhere.
Exit status: 0 all is there and verified, 1 something is missing, 2 the call was wrong.
HELP
}

die() {
    printf '%s\n' "$*" >&2
    exit 2
}

# ---------------------------------------------------------------------------------- arguments

# Starts this script anew without the URL in its arguments and environment, where `ps` would show it.
# The URL goes through a pipe, since bash 3.2 keeps a here-document in a file. Sets rest: the other arguments.
hide_url() {
    local secret=${CODELLAMA_URL-} given=${CODELLAMA_URL+yes}
    while [ $# -gt 0 ]; do
        case $1 in
            --url)
                [ $# -ge 2 ] || die "--url needs a value: the link of Meta's e-mail, in single quotes."
                secret=$2 given=yes
                shift
                ;;
            --url=*) secret=${1#--url=} given=yes ;;
            *) rest+=("$1") ;;
        esac
        shift
    done
    unset CODELLAMA_URL
    [ -n "$given" ] || return 0
    if [ ! -f "$SELF" ]; then # there is no file to start anew
        url=$secret
        return
    fi
    exec "$BASH" "$SELF" --url-on-fd-3 ${rest[@]+"${rest[@]}"} 3< <(printf '%s\n' "$secret")
}

parse() {
    while [ $# -gt 0 ]; do
        case $1 in
            --models | --dir | --jobs)
                [ $# -ge 2 ] || die "$1 needs a value; see bash download.sh --help."
                set -- "$1=$2" "${@:3}"
                continue
                ;;
            --models=*) models=${1#*=} ;;
            --dir=*) dir=${1#*=} ;;
            --jobs=*) jobs=${1#*=} ;;
            --list | --check-only | --dry-run) action=${1#--} ;;
            --help | -h)
                help
                exit 0
                ;;
            *://*) die "The URL was given without --url before it; put --url there, and single quotes around the URL." ;;
            *) die "There is no option ${1%%[=?]*}; bash download.sh --help lists those there are." ;;
        esac
        shift
    done
    case $action in
        fetch | list | check-only | dry-run) ;;
        *) die "CODELLAMA_ACTION is ${action%%[=?]*}; it can be list, check-only or dry-run." ;;
    esac
    case $jobs in
        [1-9] | 1[0-6]) ;;
        *) die "The number of jobs is ${jobs%%[=?]*}; it must be a number from 1 to 16." ;;
    esac
    case $patience in
        "" | 0* | *[!0-9]* | ??????*) die "CODELLAMA_PATIENCE is ${patience%%[=?]*}; it must be a whole number of seconds from 1 to 99999." ;;
    esac
    case $wait_seconds in
        "" | . | *[!0-9.]* | *.*.*) die "CODELLAMA_WAIT is ${wait_seconds%%[=?]*}; it must be a number of seconds, such as 2 or 0.5." ;;
    esac
    case $dir in
        -*) dir=./$dir ;; # no option of mkdir
        "") die "The folder is empty; give one with --dir, or leave --dir out for the current folder." ;;
        *://*) die "The folder given with --dir is a URL; the URL goes behind --url." ;;
    esac
}

# One sentence for each way to copy the URL wrongly. Sets before and after: what stands around the `*`.
check_url() {
    local whole=$1 host path query host_name
    case $whole in
        "") die "The URL is empty: paste the whole link of Meta's e-mail, which begins with https://download." ;;
        *[[:space:][:cntrl:]\"\'\\\<\>]*) die "The URL has a space, a quote or a backslash in it: copy it again, in one piece and without them." ;;
        *://l.facebook.com* | *://lm.facebook.com* | l.facebook.com*)
            die "The URL begins with https://l.facebook.com, so it is the address behind the link: copy the text of the link instead, which begins with https://download." ;;
    esac
    case $whole in
        */*) ;;
        *@*) die "This is an e-mail address, not a URL: paste the link from the e-mail that Meta sent to it." ;;
    esac
    host=${whole%%[/?#]*}
    case $whole in
        http://* | https://*)
            host=${whole#*://}
            host_name=${host%%[/?#]*}
            host=${whole%%://*}://$host_name
            ;;
    esac
    if [ -n "${CODELLAMA_HOST-}" ]; then
        case $CODELLAMA_HOST in
            *://*[/?*]?*) die "CODELLAMA_HOST must be scheme://host:port and no more; the rest belongs to the URL." ;;
        esac
        [ "$host" = "${CODELLAMA_HOST%/}" ] ||
            die "The URL does not begin with ${CODELLAMA_HOST%/}, which CODELLAMA_HOST asks for: change one of the two."
    else
        case $host in
            http://*) die "The URL begins with http:// and would send its signature unencrypted: use the one that begins with https://." ;;
            https://*[!a-z0-9.-]*.llamameta.net) host= ;;
            https://download*.llamameta.net) ;;
            *) host= ;;
        esac
        [ -n "$host" ] || die "The URL does not begin with https://download*.llamameta.net/: paste the link of Meta's e-mail, or name a mirror in CODELLAMA_HOST."
    fi
    path=${whole#"$host"}
    query=${path#*\?}
    [ "$query" != "$path" ] || query=
    case ${path%%\?*} in
        /*\**) ;;
        *) die "The URL has no * before the ?, which stands for the file: copy it again as it is in the e-mail, and put it in single quotes." ;;
    esac
    case "&$query" in
        *\&Policy=?*) ;;
        *) [ -n "${CODELLAMA_HOST-}" ] ||
            die "The URL has no Policy= behind the ?: copy it to its end, and put it in single quotes, because the shell cuts it at the first &." ;;
    esac
    before=${whole%%\**}
    after=${whole#*\*}
}

# Sets chosen to the names of $1 as they are written in NAMES.
check_models() {
    local wanted name found lower
    chosen=()
    for wanted in $(printf '%s' "$1" | tr ',[:upper:]' ' [:lower:]'); do
        found=
        for name in $NAMES; do
            lower=${name/P/p}
            lower=${lower/I/i}
            case $wanted in
                all | "$lower" | "codellama-$lower")
                    found=yes
                    case " ${chosen[*]-} " in
                        *" $name "*) ;;
                        *) chosen+=("$name") ;;
                    esac
                    ;;
            esac
        done
        [ -n "$found" ] || die "There is no model ${wanted%%[=?]*}. These are the models: ${NAMES// /, }."
    done
    [ ${#chosen[@]} -gt 0 ] || die "No model was named. These are the models: ${NAMES// /, }."
}

# Asks for what neither an option nor the environment gave.
ask() {
    if [ "$action" != check-only ] && [ -z "${url+set}" ]; then
        [ -t 0 ] || die "No URL was given and there is no terminal to ask on: use --url or CODELLAMA_URL."
        # Before the question: a quick paste would be echoed until read -s comes to it.
        trap 'stty echo; exit 130' INT TERM
        stty -echo
        printf 'The URL of the e-mail (it is not shown): ' >&2
        # -n: a line typed on a macOS terminal ends at 1024 characters otherwise.
        IFS= read -r -s -n 16384 url
        stty echo
        trap - INT TERM
        printf '\n' >&2
        url=${url#"${url%%[![:space:]]*}"}
        url=${url%"${url##*[![:space:]]}"}
    fi
    if [ "$action" != check-only ]; then check_url "$url"; fi
    if [ -z "$models" ]; then
        if [ "$action" = check-only ]; then
            models=$(for name in $NAMES; do [ -d "$dir/CodeLlama-$name" ] && printf '%s ' "$name"; done)
            [ -n "$models" ] || die "There is no folder CodeLlama-* in $dir: name another with --dir."
        else
            [ -t 0 ] || die "No model was named and there is no terminal to ask on: use --models or CODELLAMA_MODELS. These are the models: ${NAMES// /, }."
            printf 'The models (%s; with commas between them, or all): ' "${NAMES// /, }" >&2
            IFS= read -r models
        fi
    fi
    check_models "$models"
}

# The programs that do the work: $1 is the one asked for, the others are tried in turn.
choose() {
    local forced=$1 program what=$2
    shift 2
    for program in "$@"; do
        if [ "${forced:-$program}" = "$program" ] && command -v "$program" >/dev/null 2>&1; then
            printf '%s' "$program"
            return
        fi
    done
    forced=${forced%%[=?]*} # in case a URL was put there
    die "${forced:-None of $*} was found, or is not one of $*, to $what: install one of them."
}

# ---------------------------------------------------------------------------------- files

shards() {
    case $1 in 7b*) echo 1 ;; 13b*) echo 2 ;; 34b*) echo 4 ;; *) echo 8 ;; esac
}

# MiB of all shards, as published; stands in where a server tells no size.
published() {
    case $1 in 7b*) echo 12903 ;; 13b*) echo 24883 ;; 34b*) echo 64512 ;; *) echo 134144 ;; esac
}

# The most bytes that the file $1 may have, whatever a server announces. Weights: twice what was published, as
# a mirror may hold them in float32.
most_of() {
    local name
    name=$(model_of "$1")
    case $1 in
        *.pth) echo $((2 * 1048576 * $(published "$name") / $(shards "$name"))) ;;
        */tokenizer.model) echo 16777216 ;;
        *) echo 1048576 ;;
    esac
}

# The files of the model $1 beside checklist.chk, the small ones first: they show a bad URL sooner.
files_of() {
    local shard count
    count=$(shards "$1")
    echo params.json
    echo tokenizer.model
    for ((shard = 0; shard < count; shard++)); do printf 'consolidated.%02d.pth\n' "$shard"; done
}

bytes() {
    local count=0
    if [ -f "$1" ]; then count=$(wc -c <"$1"); fi
    echo $((count))
}

human() {
    local unit whole=$1 tenths=0
    for unit in B KiB MiB GiB; do
        if [ "$whole" -lt 1024 ] || [ "$unit" = GiB ]; then break; fi
        tenths=$((whole % 1024 * 10 / 1024))
        whole=$((whole / 1024))
    done
    if [ "$unit" = B ]; then echo "$whole B"; else echo "$whole.$tenths $unit"; fi
}

md5_of() {
    case $hasher in
        md5sum) md5sum <"$1" | cut -c 1-32 ;;
        md5) md5 <"$1" ;;
        python3) python3 -c 'import hashlib, sys
h = hashlib.md5()
for block in iter(lambda: sys.stdin.buffer.read(1 << 20), b""): h.update(block)
print(h.hexdigest())' <"$1" ;;
    esac
}

# The md5 that the checklist $1 has for the name $2, or nothing.
md5_for() {
    awk -v name="$2" '{ sub(/\r$/, ""); sub(/^[*]/, "", $2); sub(/^\.\//, "", $2) }
        $2 == name { print tolower($1); exit }' "$1"
}

# Whether $1 holds md5 lines and nothing else, and names every shard of the model $2.
checklist_ok() {
    local name
    awk '{ sub(/\r$/, "") } NF == 0 { next } { lines++ }
        NF != 2 || length($1) != 32 || $1 ~ /[^0-9a-fA-F]/ { bad = 1 }
        END { exit bad || !lines }' "$1" 2>/dev/null || return 1
    for name in $(files_of "$2"); do
        case $name in
            *.pth) [ -n "$(md5_for "$1" "$name")" ] || return 1 ;;
        esac
    done
}

# Says what is wrong with the first bytes of the file $1, whose name is to be $2; nothing if they may be right.
refusal() {
    local first
    [ -s "$1" ] || return 0
    first=$(head -c 4 "$1" | LC_ALL=C od -An -tx1)
    first=${first//[[:space:]]/}
    case $2:$first in
        *:3c* | *:0a3c* | *:0d0a3c*) echo "the server sent a web page in its place, and nothing of it was kept" ;;
        *.pth:50 | *.pth:504b | *.pth:504b03 | *.pth:504b0304) ;;
        *.pth:*) echo "what the server sent is not a zip file, as weights are, and nothing of it was kept" ;;
        *.json:7b* | *.model:* | *.chk:*) ;;
        *) echo "what the server sent is not JSON, and nothing of it was kept" ;;
    esac
}

# ---------------------------------------------------------------------------------- requests

# Asks for the size of the file $1 without its content. Sets http, and size: empty if the server does not tell it,
# or tells none that a file can have. Redirections are not followed: they would hand the signature to another host.
ask_size() {
    local answer
    answer=$(send_head "$1" | head -c 65536 | LC_ALL=C awk '{ sub(/\r$/, "") }
        $1 ~ /^HTTP\// { http = $2 ~ /^[1-5][0-9][0-9]$/ ? $2 : ""; size = "" }
        tolower($1) == "content-length:" { size = $2 ~ /^[0-9]+$/ && NF == 2 ? $2 : ""
            sub(/^0+/, "", size) # bash would read 010 as 8, and numbers of more than 18 digits as others
            if (length(size) > 15) size = "999999999999999" }
        END { print http, size }')
    http=${answer% *} size=${answer#* }
    if [ "$http" != 200 ]; then size=; fi
}

# What curl or wget reads the URL of the file $1 from.
address() {
    if [ "$fetcher" = curl ]; then printf 'url = "%s"\n' "$before$1$after"; else printf '%s\n' "$before$1$after"; fi
}

# <&0 because what runs in the background would have no standard input otherwise.
send_head() {
    local program=(wget "${WGET[@]}" --spider --server-response)
    if [ "$fetcher" = curl ]; then program=(curl "${CURL[@]}" --head); fi
    address "$1" | {
        "${program[@]}" <&0 2>&1 &
        child=$!
        watch "$child" "" "$1" >/dev/null 2>&1 &
        wait "$child" 2>/dev/null
        kill "$!" 2>/dev/null
    }
}

# Runs beside the transfer $1 into the part $2 (empty: of headers only) of the file $3: ends it when it brings a web
# page, or too little for too long, when another lane met a 403, or when the script itself is gone (kill -9), which
# would leave two writers.
watch() {
    local since=$SECONDS had now
    had=$(bytes "$2")
    while sleep 0.2; do
        kill -0 "$1" 2>/dev/null || return
        if [ $((SECONDS - since)) -gt "$patience" ]; then
            now=$(bytes "$2")
            if [ $((now - had)) -lt $((SLOWEST * patience)) ]; then break; fi
            since=$SECONDS had=$now
        fi
        if [ -e "$lock/expired" ] || ! kill -0 $$ 2>/dev/null || [ -n "$(refusal "$2" "$3")" ]; then break; fi
    done
    kill "$1" 2>/dev/null
}

# Becomes the program behind $1, which can make no file longer than that many bytes and 1 KiB. It is told so when it
# writes, as of a full disk.
bounded() {
    trap '' XFSZ
    ulimit -f $(($1 / 1024 + 1)) 2>/dev/null
    shift
    exec "$@"
}

# One request for the file $1, whose content is appended to the part $2, to at most $3 bytes and 1 KiB. Sets http,
# kind and code: the status, the content type, and the exit status of curl or wget.
request() {
    local have resume=() reader=
    have=$(bytes "$2")
    if [ "$fetcher" = curl ]; then
        if [ "$have" -gt 0 ]; then resume=(--continue-at "$have"); fi
        address "$1" |
            bounded "$3" curl "${CURL[@]}" ${resume[@]+"${resume[@]}"} --fail --no-buffer \
                --output "$2" --write-out '%{http_code} %{content_type}\n' >"$lock/answer.$lane" 2>/dev/null &
        child=$!
    else
        rm -f "$lock/headers.$lane"
        mkfifo "$lock/headers.$lane"
        LC_ALL=C awk '$1 ~ /^HTTP\// { http = $2; type = "" } tolower($1) == "content-type:" { type = $2 }
            END { print http, type }' <"$lock/headers.$lane" >"$lock/answer.$lane" 2>/dev/null &
        reader=$!
        address "$1" |
            bounded "$3" wget "${WGET[@]}" --continue --server-response --output-document="$2" \
                >/dev/null 2>"$lock/headers.$lane" &
        child=$!
    fi
    echo "$child" >"$lock/pid.fetch.$lane"
    watch "$child" "$2" "$1" >/dev/null 2>&1 &
    watcher=$!
    wait "$child" 2>/dev/null
    code=$?
    kill "$watcher" 2>/dev/null
    wait "$watcher" ${reader:+"$reader"} 2>/dev/null
    child='' watcher=''
    read -r http kind <"$lock/answer.$lane"
    kill -0 $$ 2>/dev/null || exit 1
}

# What went wrong, in words, from http and code.
trouble() {
    case $http:$code in
        404:*) echo "the server does not have it (404)" ;;
        [345]??:*) echo "the server answered $http" ;;
        *) case $fetcher:$code in
            curl:6) echo "the host was not found; the network may be down" ;;
            curl:23 | wget:3) echo "it could not be written; the disk may be full, or the folder read-only" ;;
            curl:143 | wget:143) echo "the connection brought less than $SLOWEST bytes a second, $TRIES times in a row, and was ended here" ;;
            curl:35 | curl:60 | wget:5) echo "the server's certificate was not accepted; a proxy may stand between" ;;
            *) echo "the connection broke $TRIES times in a row, and brought less than $SLOWEST bytes a second ($fetcher exit status $code)" ;;
        esac ;;
    esac
}

# Fetches the file $1 into its part and gives it its name once its size is $3 and its md5 is $2 (either may be
# unknown, and empty). Writes the reason to failed.N on failure.
fetch_file() {
    local file=$1 sum=$2 want=$3 part=$dir/$1.part have now reason='' idle=0 wrong=0 most=0 limit since broken
    limit=${want:-$(most_of "$1")}
    printf '%s\n%s\n' "$file" "${want:-0}" >"$lock/active.$lane"
    if [ -d "$part" ] || [ -d "$dir/$file" ]; then reason="a folder stands in its place; remove it"; fi
    while [ -z "$reason" ]; do
        if [ -n "$(refusal "$part" "$file")" ]; then rm -f "$part"; fi
        have=$(bytes "$part")
        if [ "$have" -gt "$limit" ]; then
            rm -f "$part"
            have=0
        fi
        if [ "$have" -gt "$most" ]; then most=$have; fi
        http='' kind='' code=0 broken=''
        if [ -z "$want" ] || [ "$have" -lt "$want" ]; then
            [ -e "$lock/expired" ] && return 1
            since=$SECONDS
            request "$file" "$part" "$limit"
            reason=$(refusal "$part" "$file")
            case $http:$kind in
                2*:*text/html*) reason=${reason:-"the server sent a web page in its place"} ;;
            esac
            # What a refused answer added to a good part cannot be told apart from it.
            now=$(bytes "$part")
            if [ "$now" -gt "$limit" ]; then
                reason="the server sent more than the $(human "$limit") that $([ -n "$want" ] && echo it announced || echo such a file can have)"
            fi
            if [ "$now" -eq 0 ] || { [ -n "$reason" ] && [ "$now" -ne "$have" ]; }; then rm -f "$part"; fi
            [ -z "$reason" ] || break
            if [ "$http" = 403 ]; then
                : >"$lock/expired"
                reason="the server answered 403"
                break
            fi
            [ -e "$lock/expired" ] && return 1
            [ "$http:$have" = 416:0 ] && reason=$(trouble) && break
            case $http:$code in
                416:*) ;; # the part is complete, if it is anything: its md5 decides
                2*:0) ;;
                2*:33) rm -f "$part" && continue ;; # this server cannot continue: from the start
                408:* | 429:* | 5*:*) broken=yes ;;
                3*:* | 4*:* | *:23 | *:6 | *:35 | *:60) reason=$(trouble) && break ;;
                *) broken=yes ;;
            esac
            if [ -n "$broken" ] || { [ -n "$want" ] && [ "$now" -lt "$want" ] && [ "$http" != 416 ]; }; then
                idle=$((idle + 1))
                # Progress, even over a fresh start.
                if [ $((now - most)) -ge $((SLOWEST * (SECONDS - since + 1))) ]; then idle=0; fi
                if [ $idle -ge $TRIES ]; then reason=$(trouble); fi
                [ -z "$reason" ] && pause "$wait_seconds"
                continue
            fi
        fi
        if { [ -z "$want" ] || [ "$(bytes "$part")" -eq "$want" ]; } && agrees "$file" "$sum" "$part" && mv -f "$part" "$dir/$file"; then
            say "$file: $(human "$(bytes "$dir/$file")"), $(known_by "$file" "$sum")."
            rm -f "$lock/active.$lane"
            : >"$lock/finished.$4"
            return
        fi
        rm -f "$part"
        wrong=$((wrong + 1))
        if [ $wrong -gt $REFETCHES ]; then
            reason="its content did not agree with its checksum, $wrong times"
            case $file in *.chk) reason="it does not hold the md5 of every shard, asked for $wrong times" ;; esac
        else
            say "$file: the content is not what it should be; fetching it again."
        fi
    done
    rm -f "$lock/active.$lane"
    say "$file: not fetched: $reason."
    echo "$reason" >"$lock/failed.$4"
}

# How the file $1 with the md5 $2, which may be empty, is known to be right.
known_by() {
    case $1:$2 in
        */checklist.chk:* | *:?*) echo verified ;;
        *) echo "present; checklist.chk does not name it" ;;
    esac
}

# Whether the part $3 is what the file $1 should be, by its md5 $2. In the background, so that Ctrl-C need not
# wait until tens of gigabytes are read.
agrees() {
    case $1 in
        */checklist.chk)
            checklist_ok "$3" "$(model_of "$1")"
            return
            ;;
    esac
    [ -n "$2" ] || return 0
    md5_of "$3" >"$lock/md5.$lane" &
    child=$!
    wait "$child"
    child=
    [ "$(cat "$lock/md5.$lane")" = "$2" ]
}

model_of() {
    local folder=${1%%/*}
    printf '%s' "${folder#CodeLlama-}"
}

pause() {
    sleep "$1" &
    child=$!
    wait "$child"
    child=
}

# ---------------------------------------------------------------------------------- the queue

# One of --jobs lanes: takes the next file that no other lane took; mkdir is what only one of them can do.
run_lane() {
    local next
    lane=$1 child='' watcher=''
    trap - EXIT HUP
    trap end_lane TERM
    for ((next = 0; next < ${#queue[@]}; next++)); do
        [ -e "$lock/expired" ] && exit 0
        mkdir "$lock/taken.$next" 2>/dev/null || continue
        fetch_file "${queue[next]}" "${queue_md5[next]}" "${queue_size[next]}" "$next"
    done
    exit 0
}

# $! beside child: the signal may come between the start of a child and the note of it.
end_lane() {
    local pid
    set +u
    for pid in "$child" "$watcher" "$!"; do kill "$pid" 2>/dev/null; done
    exit 143
}

# Fetches the queue. Every file of it that is not there afterwards goes to missing, with the reason.
run_queue() {
    local number file
    rm -rf "$lock"/taken.* "$lock"/failed.* "$lock"/finished.*
    lanes=()
    for ((number = 0; number < jobs; number++)); do
        run_lane "$number" &
        lanes+=("$!")
        echo "$!" >"$lock/pid.lane.$number"
    done
    if [ -n "$terminal" ]; then
        while kill -0 "${lanes[@]}" 2>/dev/null; do
            paint
            sleep 0.3
        done
    fi
    wait "${lanes[@]}"
    lanes=()
    rm -f "$lock"/active.*
    if [ -n "$terminal" ]; then paint; fi
    for ((number = 0; number < ${#queue[@]}; number++)); do
        file=${queue[number]}
        if [ -e "$lock/failed.$number" ]; then
            missing+=("$file: $(cat "$lock/failed.$number")")
        elif [ ! -e "$lock/finished.$number" ]; then
            missing+=("$file: it was not asked for after that")
        fi
    done
}

# A line about a file. With progress bars on the screen only paint writes to it, or the two would mix.
say() {
    if [ -n "$terminal" ] && [ "$lane" != main ]; then
        printf '%s\n' "$1" >>"$lock/messages"
    else
        printf '%s\n' "$1"
    fi
}

# Draws a progress bar for each file under way, over the ones drawn before, below the messages that came.
paint() {
    local active file want have tenths bar text=''
    while [ "$painted" -gt 0 ]; do
        text=$text$'\033[A\033[K'
        painted=$((painted - 1))
    done
    if [ -e "$lock/messages" ] && mv "$lock/messages" "$lock/shown" 2>/dev/null; then
        text=$text$(cat "$lock/shown")$'\n'
    fi
    for active in "$lock"/active.*; do
        { read -r file && read -r want; } 2>/dev/null <"$active" || continue
        have=$(bytes "$dir/$file.part")
        tenths=0
        if [ "$want" -gt 0 ]; then tenths=$((have * 10 / want)); fi
        bar=$(printf '%*s' "$tenths" '' | tr ' ' '#')
        bar=$(printf '%-42s [%-10s] %s of %s' "$file" "$bar" "$(human "$have")" "$(human "$want")")
        if [ "$tenths" -ge 10 ]; then bar=$(printf '%-42s verifying %s' "$file" "$(human "$have")"); fi
        text=$text${bar:0:columns}$'\n'
        painted=$((painted + 1))
    done
    printf '%s' "$text"
}

# ---------------------------------------------------------------------------------- the lock

# One run for one folder. The lock of a run that was killed is taken over, after its children are ended: a curl
# that still writes would write between the bytes of the new one.
take_lock() {
    local owner='' leftover pid
    mkdir -p "$dir" 2>/dev/null || die "The folder $dir cannot be made: choose another with --dir."
    [ -w "$dir" ] || die "The folder $dir cannot be written to: choose another with --dir."
    lock=$dir/.download.lock
    if ! mkdir "$lock" 2>/dev/null; then
        [ -s "$lock/owner" ] || sleep 1 # its run may just have made it
        mkdir "$lock/heir" 2>/dev/null || refuse "which is taking over from an earlier one"
        read -r owner 2>/dev/null <"$lock/owner"
        if [ -n "$owner" ] && { [ "${owner#* }" != "$HOSTNAME" ] || runs "${owner%% *}"; }; then
            rmdir "$lock/heir"
            refuse "with process ${owner%% *} on ${owner#* }"
        fi
        for leftover in "$lock"/pid.*; do
            read -r pid 2>/dev/null <"$leftover" || continue
            case $(command_of "$pid") in
                *"${0##*/}"* | *curl*--config\ -* | *wget*--input-file=-*) end_process "$pid" ;;
            esac
        done
        echo "$$ $HOSTNAME" >"$lock/owner"
        for leftover in "$lock"/*; do
            case $leftover in */owner) ;; *) rm -rf "$leftover" ;; esac
        done
    fi
    echo "$$ $HOSTNAME" >"$lock/owner"
    trap let_go EXIT
    trap 'interrupted 130' INT
    trap 'interrupted 143' TERM
    trap 'interrupted 129' HUP
}

refuse() {
    local held=$lock
    lock=
    die "Another run, $1, is fetching into $dir: wait for it, or choose another folder. If there is none, remove $held."
}

# A process of another user cannot be signalled, but ps sees it.
# A zombie has ended, whoever may have to collect it.
alive() {
    local state
    state=$(ps -p "$1" -o stat= 2>/dev/null || { kill -0 "$1" 2>/dev/null && echo unknown; })
    case $state in "" | Z*) return 1 ;; esac
}

# After a restart of the machine the number may be another program's.
runs() {
    alive "$1" || return 1
    case $(command_of "$1") in "" | *sh*) ;; *) return 1 ;; esac
}

# The arguments of a process, or nothing where there is no such process or no ps.
command_of() { ps -ww -p "$1" -o args= 2>/dev/null; }

end_process() {
    local tenths
    kill "$1" 2>/dev/null
    for ((tenths = 0; tenths < 50; tenths++)); do
        alive "$1" || return 0
        sleep 0.1
    done
    kill -9 "$1" 2>/dev/null
}

let_go() {
    trap '' INT TERM HUP
    if [ ${#lanes[@]} -gt 0 ]; then
        kill "${lanes[@]}" 2>/dev/null
        wait "${lanes[@]}" 2>/dev/null
    fi
    rm -rf "$lock"
}

interrupted() {
    printf '\nInterrupted. What was fetched is kept. The line to run next, which continues it:\n  %s\n' \
        "$(next_line "${chosen[@]}")" >&2
    exit "$1"
}

# ---------------------------------------------------------------------------------- the actions

# The line that does what is left, for the models given; without the URL, which it asks for.
next_line() {
    local list
    list=$(IFS=,; printf '%s' "$*")
    printf 'bash %q --models %s --dir %q' "${SELF:-download.sh}" "$list" "$dir"
    if [ "$jobs" != 1 ]; then printf ' --jobs %s' "$jobs"; fi
}

# Ends the script: 0 if nothing is missing, otherwise the list and the line to run next.
report() {
    local entry name left=() unnamed=()
    if [ ${#missing[@]} -eq 0 ]; then
        for name in "${chosen[@]}"; do
            for entry in $(files_of "$name"); do
                if [ -z "$(md5_for "$dir/CodeLlama-$name/checklist.chk" "$entry")" ]; then unnamed+=("CodeLlama-$name/$entry"); fi
            done
        done
        if [ ${#unnamed[@]} -eq 0 ]; then
            printf 'All files of %s are there and verified.\n' "${chosen[*]}"
        else
            printf 'All files of %s are there, and verified but for those that checklist.chk does not name: %s.\n' \
                "${chosen[*]}" "${unnamed[*]}"
        fi
        exit 0
    fi
    if [ -n "$lock" ] && [ -e "$lock/expired" ]; then
        printf 'The server answered 403: the URL has expired, or was used as often as it may be. Ask Meta for a new one, then run the line below.\n' >&2
        case $after in
            *Policy=*\&Signature=* | *Signature=*\&Policy=*) ;;
            *) printf 'The URL also has no Signature=: it may have been cut at an &, for want of single quotes.\n' >&2 ;;
        esac
    fi
    printf 'Missing:\n' >&2
    printf '  %s\n' "${missing[@]}" >&2
    for name in "${chosen[@]}"; do
        for entry in "${missing[@]}"; do
            case $entry in "CodeLlama-$name/"*) left+=("$name") && break ;; esac
        done
    done
    printf 'The line to run next:\n  %s\n' "$(next_line "${left[@]}")" >&2
    exit 1
}

list() {
    local name
    printf '%-14s %6s  %s\n' model shards size
    for name in $NAMES; do
        printf '%-14s %6s  about %s\n' "$name" "$(shards "$name")" "$(human $(($(published "$name") * 1048576)))"
    done
}

check_only() {
    local name file path sum
    for name in "${chosen[@]}"; do
        path=$dir/CodeLlama-$name
        if ! checklist_ok "$path/checklist.chk" "$name"; then
            missing+=("CodeLlama-$name/checklist.chk: it is not there, or does not hold the md5 of every shard")
            continue
        fi
        for file in $(files_of "$name"); do
            sum=$(md5_for "$path/checklist.chk" "$file")
            if [ ! -f "$path/$file" ]; then
                missing+=("CodeLlama-$name/$file: it is not there")
            elif [ -n "$sum" ] && [ "$(md5_of "$path/$file")" != "$sum" ]; then
                missing+=("CodeLlama-$name/$file: its content does not agree with its checksum")
            else
                printf 'CodeLlama-%s/%s: %s, %s.\n' "$name" "$file" "$(human "$(bytes "$path/$file")")" \
                    "$(known_by "$file" "$sum")"
            fi
        done
    done
}

enqueue() {
    queue+=("$1")
    queue_md5+=("$2")
    queue_size+=("$3")
}

# Queues what is to be fetched of the chosen models, with sizes. Sets need, the bytes still to come.
plan() {
    local name file path sum have can_have
    queue=() queue_md5=() queue_size=() need=0
    for name in "${chosen[@]}"; do
        path=$dir/CodeLlama-$name
        for file in $(files_of "$name"); do
            sum=
            if [ -f "$path/checklist.chk" ]; then sum=$(md5_for "$path/checklist.chk" "$file"); fi
            if [ -f "$path/$file" ] && [ -s "$path/$file" ] && { [ -n "$sum" ] || [ "${file%.pth}" = "$file" ]; }; then
                if [ -n "$sum" ]; then
                    if [ "$(md5_of "$path/$file")" = "$sum" ]; then have=yes; else have=no; fi
                else # its size is all there is to compare
                    ask_size "CodeLlama-$name/$file"
                    if [ -z "$size" ] || [ "$(bytes "$path/$file")" -eq "$size" ]; then have=yes; else have=no; fi
                fi
                if [ "$have" = yes ]; then
                    say "CodeLlama-$name/$file: $(human "$(bytes "$path/$file")"), already there, $(known_by "$file" "$sum")."
                    continue
                fi
                say "CodeLlama-$name/$file: the content is not what it should be; fetching it again."
            fi
            ask_size "CodeLlama-$name/$file"
            can_have=$(most_of "CodeLlama-$name/$file")
            if [ "${size:-0}" -gt "$can_have" ]; then
                missing+=("CodeLlama-$name/$file: the server announces more than the $(human "$can_have") that such a file can have")
                continue
            fi
            enqueue "CodeLlama-$name/$file" "$sum" "$size"
            if [ -z "$size" ]; then
                size=0
                case $file in *.pth) size=$(($(published "$name") * 1048576 / $(shards "$name"))) ;; esac
                if [ "$http" = 200 ]; then
                    say "CodeLlama-$name/$file: the server does not tell the size; reckoning with $(human "$size")."
                elif [ "$action" = dry-run ]; then
                    missing+=("CodeLlama-$name/$file: the server ${http:+answered }${http:-did not answer}")
                fi
            fi
            have=$(bytes "$path/$file.part")
            if [ "$have" -lt "$size" ]; then need=$((need + size - have)); fi
            if [ "$action" = dry-run ]; then printf 'CodeLlama-%s/%s: %s to fetch.\n' "$name" "$file" "$(human $((have < size ? size - have : 0)))"; fi
        done
    done
}

# Compares need with what is free. df wants a folder that is there, which a dry run does not make.
check_disk() {
    local free place=$dir
    while [ ! -d "$place" ]; do place=$(dirname "$place"); done
    free=$(df -Pk "$place" 2>/dev/null | awk 'NR == 2 { print $4 }')
    case $free in
        "" | *[!0-9]*) say "The free space of $dir is not known: df does not tell it." ;;
        *)
            [ $((free * 1024)) -ge "$need" ] && return
            printf 'The disk of %s is too small: %s are to be fetched and %s are free. Make room, or choose another folder with --dir.\n' \
                "$dir" "$(human "$need")" "$(human $((free * 1024)))" >&2
            exit 1
            ;;
    esac
}

dry_run() {
    ask_size "CodeLlama-${chosen[0]}/checklist.chk"
    if [ "$http" = 403 ]; then
        printf 'The server answered 403: the URL has expired, or was used as often as it may be. Ask Meta for a new one.\n' >&2
        exit 1
    fi
    plan
    printf 'In all %s to fetch; nothing was written.\n' "$(human "$need")"
    check_disk
    [ ${#missing[@]} -eq 0 ] && return
    printf 'Of these the server tells no size that can be right:\n' >&2
    printf '  %s\n' "${missing[@]}" >&2
    exit 1
}

fetch() {
    local name path
    take_lock
    if [ -t 1 ]; then
        terminal=yes
        columns=$(tput cols 2>/dev/null) || columns=80
    fi
    queue=() queue_md5=() queue_size=()
    for name in "${chosen[@]}"; do
        path=$dir/CodeLlama-$name
        mkdir -p "$path" 2>/dev/null || die "The folder $path cannot be made: choose another with --dir."
        checklist_ok "$path/checklist.chk" "$name" || enqueue "CodeLlama-$name/checklist.chk" "" ""
    done
    run_queue
    if [ ${#missing[@]} -gt 0 ]; then report; fi
    plan
    check_disk
    run_queue
    report
}

url_given() {
    IFS= read -r -d '' url <&3 # to the end: a line break in it is to be found by check_url
    exec 3<&-
    url=${url#"${url%%[![:space:]]*}"}
    url=${url%"${url##*[![:space:]]}"}
}

main() {
    rest=()
    case ${1-} in
        --url-on-fd-3)
            shift
            url_given
            rest=(${1+"$@"})
            ;;
        *) hide_url ${1+"$@"} ;;
    esac
    action=${CODELLAMA_ACTION:-fetch} models=${CODELLAMA_MODELS-} dir=${CODELLAMA_DIR-.} jobs=${CODELLAMA_JOBS-1}
    wait_seconds=${CODELLAMA_WAIT:-2} patience=${CODELLAMA_PATIENCE:-60}
    terminal='' painted=0 lock='' lane=main after=''
    lanes=() missing=()
    parse ${rest[@]+"${rest[@]}"}
    if [ "$action" = list ]; then
        list
        exit 0
    fi
    ask
    fetcher=none
    if [ "$action" != check-only ]; then
        fetcher=$(choose "${CODELLAMA_FETCHER-}" "fetch with" curl wget) || exit 2
    fi
    hasher=$(choose "${CODELLAMA_MD5-}" "compute md5 with" md5sum md5 python3) || exit 2
    # Settings of the user's own (~/.curlrc, ~/.wgetrc) could print the URL or rename the files.
    CURL=(-q --silent --globoff --connect-timeout 30 --config -)
    WGET=(--no-config --quiet --tries=1 --max-redirect=0 --no-hsts "--timeout=$patience" --input-file=-)
    case $action in
        check-only) check_only && report ;;
        dry-run) dry_run ;;
        fetch) fetch ;;
    esac
}

main ${1+"$@"}
