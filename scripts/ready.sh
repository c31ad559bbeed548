# shellcheck shell=sh
# Sourced with $root set: `ready run` says whether the set-up is complete and newer than what it was made from;
# `ready dev` the same with what the tests need.
#
# Only what the shell has built in is used, because every call of ./kvmkit pays for it: no program is started.

# shellcheck disable=SC2154 # root is the sourcing script's
venv=$root/.venv
installed=$venv/kvmkit.installed # the requirements that pip has installed
stamp=$root/build/kvmkit.ready   # line 1: the checkout; line 2: the Python below; line 3: how many modules are compiled

# Compiled modules have a .pxd; the patterns are as deep as the package is. Leaves the number in $compiled.
count_compiled() {
	compiled=0
	for pxd in "$root"/src/kvmkit/*.pxd "$root"/src/kvmkit/*/*.pxd "$root"/src/kvmkit/*/*/*.pxd \
		"$root"/src/kvmkit/*/*/*/*.pxd; do
		[ -e "$pxd" ] || continue
		compiled=$((compiled + 1))
		"$1" "$pxd" && "$1" "${pxd%.pxd}.py" || return 1
	done
}

# shellcheck disable=SC3013 # -nt is not in POSIX, but in dash, bash, ksh and busybox
older_than_stamp() {
	! [ "$1" -nt "$stamp" ]
}

ready() {
	{ IFS= read -r made_for && IFS= read -r made_with && IFS= read -r made_count; } 2>/dev/null <"$stamp" || return 1
	[ "$made_for" = "$root" ] && [ -x "$made_with" ] && [ -x "$venv/bin/python" ] && [ -e "$installed" ] &&
		{ [ "$1" = run ] || [ -e "$installed.dev" ]; } &&
		older_than_stamp "$root/pyproject.toml" && older_than_stamp "$root/setup.py" &&
		count_compiled older_than_stamp && [ "$made_count" = "$compiled" ]
}
