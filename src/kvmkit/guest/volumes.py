"""What the agent runs, by the image's own shell, where the kernel's command line has volumes."""

from __future__ import annotations

MOUNT_VOLUMES = """\
decode() { # %41 is A; neither dash nor busybox has all of printf
	rest=$1 out=
	while :; do
		case $rest in *%*) ;; *) break ;; esac
		out=$out${rest%%%*} rest=${rest#*%}
		out=$out$(printf "\\\\$(printf %03o "0x$(printf %.2s "$rest")")") rest=${rest#??}
	done
	printf %s "$out$rest"
}
for word in $(cat /proc/cmdline); do
	case $word in kvmkit.volume=*) ;; *) continue ;; esac
	word=${word#*=}
	tag=${word%%:*} word=${word#*:}
	options=rw
	case $word in *:ro) options=ro word=${word%:ro} ;; esac
	path=$(decode "$word")
	mkdir -p "$path" && mount -t virtiofs -o $options "$tag" "$path" || echo "kvmkit: no volume at $path" > /dev/kmsg
done
"""
