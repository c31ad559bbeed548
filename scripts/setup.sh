#!/bin/sh
# Set up this checkout: `setup.sh run` for ./kvmkit, `setup.sh dev` for ./test, `setup.sh ci` also the tests' packages.
#
# Steps are shown on a terminal, each in a line; their output goes to .venv/setup.log, whose end is shown when one
# fails. A lock lets one set-up run at a time. What is interrupted is made again.
set -eu

kind=$1
root=$(CDPATH='' cd -- "${0%/*}/.." && pwd -P)
# shellcheck source=scripts/ready.sh
. "$root/scripts/ready.sh"
# shellcheck source=scripts/packages.sh
. "$root/scripts/packages.sh"

log=$venv/setup.log
installing=$venv/kvmkit.installing        # there while pip runs, and after it was interrupted
compiling=$root/build/kvmkit.compiling    # there while compilers run, and after they were interrupted
compiled_all=$root/build/kvmkit.compiled  # when all was last compiled

say() {
	[ ! -t 2 ] || printf 'kvmkit: %s\n' "$*" >&2
}

fail() {
	printf 'kvmkit: %s\n' "$*" >&2
	exit 1
}

# What ends us ends the step that runs, with all that it has started: each is a session of its own.
running=
stopped() {
	trap '' HUP INT TERM
	if [ -n "$running" ]; then
		kill -s TERM -- "-$running" 2>/dev/null || :
		wait "$running" 2>/dev/null || :
	fi
	exit "$1"
}
trap 'stopped 129' HUP
trap 'stopped 130' INT
trap 'stopped 143' TERM

# step TEXT COMMAND...: show TEXT, run COMMAND with its output in the log.
step() {
	text=$1
	shift
	say "$text ..."
	mkdir -p "$venv"
	printf '\n== %s: %s\n' "$text" "$*" >>"$log"
	setsid "$@" >>"$log" 2>&1 </dev/null 9<&- &
	running=$!
	status=0
	wait "$running" || status=$?
	running=
	[ "$status" = 0 ] || {
		printf 'kvmkit: %s failed (status %s); the end of %s:\n' "$text" "$status" "$log" >&2
		tail -n 15 "$log" | sed 's/^/  /' >&2
		[ "${text#compiling}" = "$text" ] || rm -f "$compiling" # an error in a source leaves nothing half written
		exit 1
	}
}

# ---- system packages ----

# A Python that is new enough, can make virtual environments, and has its headers.
fit_python() {
	"$1" -c '
import sys, os
try:
    import ensurepip, sysconfig, venv
except ImportError:
    sys.exit(1)
sys.exit(sys.version_info < (3, 11) or not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))
' >/dev/null 2>&1
}

find_python() {
	for python in "$(command -v python3 || :)" /usr/bin/python3; do
		if [ -n "$python" ] && fit_python "$python"; then return 0; fi
	done
	return 1
}

is_installed() {
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

missing_packages() {
	missing=
	find_python || missing="$missing $python_packages"
	if ! command -v gcc >/dev/null || ! [ -e /usr/include/stdio.h ]; then missing="$missing $compiler_packages"; fi
	if [ "$kind" = ci ]; then
		for package in $test_packages; do
			is_installed "$package" || missing="$missing $package"
		done
	fi
	missing=${missing# }
}

system_packages() {
	missing_packages
	[ -n "$missing" ] || return 0
	if ! command -v apt-get >/dev/null; then
		fail "needs Python 3.11 or newer (with venv and headers), gcc and the C library's headers: please install them"
	fi
	if [ "$(id -u)" != 0 ]; then
		fail "system packages are missing; install them with: sudo apt-get install $missing"
	fi
	# shellcheck disable=SC2086 # a list of words
	step "installing $missing" sh scripts/apt.sh $missing
	find_python || fail "needs Python 3.11 or newer; this system's is $(python3 -V 2>&1 || echo missing)"
}

# ---- the virtual environment ----

base_of() {
	"$1" -c 'import os, sys; print(os.path.realpath(sys._base_executable))'
}

environment() {
	base=$(base_of "$python")
	if [ -e "$installing" ] && ! [ -L "$venv" ]; then
		: # what is in there may be half a package
	elif [ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import pip' 2>/dev/null &&
		{ [ -L "$venv" ] || [ "$(base_of "$venv/bin/python")" = "$base" ]; }; then
		base=$(base_of "$venv/bin/python")
		return 0
	fi
	[ -L "$venv" ] || rm -rf "$venv"
	step "making a virtual environment with $base" "$python" -m venv "$venv"
}

requirements() {
	extra=
	[ "$kind" = run ] || extra=dev
	wanted=$("$venv/bin/python" "$root/scripts/requirements.py" "$root/pyproject.toml" ${extra:+"$extra"})
	if [ -e "$installed" ] && all_installed "$wanted"; then return 0; fi
	: >"$installing"
	rm -f "$installed.dev"
	printf '%s\n' "$wanted" >"$installed.new"
	step "installing Python packages" "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
		-r "$installed.new"
	mv "$installed.new" "$installed"
	[ -z "$extra" ] || : >"$installed.$extra"
	rm "$installing"
}

# Whether every line of $1 is in the file of what is installed.
all_installed() {
	! printf '%s\n' "$1" | grep -v -x -F -q -f "$installed"
}

# ---- compiled modules ----

compile() {
	# A file may be left half written when this was interrupted, and flags are not among what the compiler compares.
	force=
	# shellcheck disable=SC3013 # as in ready.sh
	if [ -e "$compiling" ] || [ ! -e "$compiled_all" ] || [ setup.py -nt "$compiled_all" ]; then force=--force; fi
	: >"$compiling"
	# A module that is no longer compiled would be found before its source.
	find src -name '*.so' | while IFS= read -r built; do
		[ -e "${built%%.*}.pxd" ] || rm -f "$built"
	done
	step "compiling (a minute or two, the first time)" \
		"$venv/bin/python" setup.py --quiet build_ext --inplace ${force:+"$force"} --parallel "$(nproc)"
	step "compiling the rest" "$venv/bin/python" -m compileall -q src/kvmkit
	mv "$compiling" "$compiled_all"
}

# ---- all of it ----

[ -w "$root" ] || fail "can't set up in $root, which is read-only for this user: copy it to a place of yours"
if [ -e "$venv" ] && ! [ -w "$venv" ]; then
	fail "can't set up: $venv is another user's; remove it, or run this as the user who made it"
fi

exec 9<"$root" # a lock on the checkout itself leaves no file behind
if ! flock -n 9; then
	say "waiting for another set-up of this checkout"
	setsid flock 9 &
	running=$!
	wait "$running"
	running=
	if ready "$kind"; then exit 0; fi
fi

cd "$root"
system_packages
environment
mkdir -p build
rm -f "$stamp"
: >"$stamp.new" # a source that is changed while this runs is newer than this, and compiled next time
requirements
compile
suffix=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
count_compiled : "$suffix" || fail "a module was not compiled; see $log"
printf '%s\n' "$root" "$base" "$compiled" "$suffix" >"$stamp.text"
touch -r "$stamp.new" "$stamp.text"
mv "$stamp.text" "$stamp"
rm -f "$stamp.new"
