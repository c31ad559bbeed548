# shellcheck shell=sh
# Sourced with $root set: `ready run` says whether the set-up is complete and newer than what it was made from;
# `ready dev` the same with what the tests need.
#
# Only what the shell has built in is used, because every call of ./kvmkit pays for it: no program is started.

# shellcheck disable=SC2154 # root is the sourcing script's
venv=$root/.venv
installed=$venv/kvmkit.installed # the requirements that pip has installed
stamp=$root/build/kvmkit.ready   # line 1: the checkout; 2: the Python below; 3: how many .pxd there are; 4: see below

# count_compiled CHECK [SUFFIX]: CHECK every .pxd and .py of the compiled modules, which have both, and leave the number of
# .pxd in $compiled. With SUFFIX, what the names of compiled modules end in, each of these has to be there, too.
# The patterns are as deep as the package is.
count_compiled() {
	compiled=0
	for pxd in "$root"/src/kvmkit/*.pxd "$root"/src/kvmkit/*/*.pxd "$root"/src/kvmkit/*/*/*.pxd \
		"$root"/src/kvmkit/*/*/*/*.pxd; do
		[ -e "$pxd" ] || continue
		compiled=$((compiled + 1))
		"$1" "$pxd" || return 1
		[ -e "${pxd%.pxd}.py" ] || continue # only the declarations of something else
		"$1" "${pxd%.pxd}.py" || return 1
		[ -z "${2-}" ] || [ -e "${pxd%.pxd}$2" ] || return 1
	done
}

# shellcheck disable=SC3013 # -nt is not in POSIX, but in dash, bash, ksh and busybox
older_than_stamp() {
	! [ "$1" -nt "$stamp" ]
}

ready() {
	{
		IFS= read -r made_for && IFS= read -r made_with && IFS= read -r made_count && IFS= read -r made_suffix
	} 2>/dev/null <"$stamp" || return 1
	[ "$made_for" = "$root" ] && [ -x "$made_with" ] && [ -x "$venv/bin/python" ] && [ -e "$installed" ] &&
		{ [ "$1" = run ] || [ -e "$installed.dev" ]; } &&
		older_than_stamp "$root/pyproject.toml" && older_than_stamp "$root/setup.py" &&
		count_compiled older_than_stamp "$made_suffix" && [ "$made_count" = "$compiled" ]
}

# Set up, as a child that ends with us.
run_setup() {
	sh "$root/scripts/setup.sh" "$1" &
	setup=$!
	trap 'kill -TERM "$setup" 2>/dev/null; wait "$setup" || :; exit 143' TERM
	trap 'kill -TERM "$setup" 2>/dev/null; wait "$setup" || :; exit 130' INT
	trap 'kill -TERM "$setup" 2>/dev/null; wait "$setup" || :; exit 129' HUP
	setup_status=0
	wait "$setup" || setup_status=$?
	trap - TERM INT HUP
	[ "$setup_status" = 0 ] || exit "$setup_status"
}
