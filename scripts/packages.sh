# shellcheck shell=sh
# The Debian packages, in one place. Sourced; each list is words.

# shellcheck disable=SC2034 # used by those who source this
{
	# To build and run: Python with venv and headers, a C compiler and C headers (<linux/kvm.h> comes with them).
	python_packages="python3 python3-venv python3-dev"
	compiler_packages="gcc libc6-dev"

	# What the tests use beside that. Without one of them, the tests that need it are skipped and say so.
	#   qemu-system-x86  the peer, and the KVM test host      mmdebstrap  the KVM test host's root
	#   acpica-tools     iasl reads our ACPI tables           cpio, lzop  what other tools make of the same data
	#   kmod             modprobe and modinfo                 shellcheck  the scripts
	#   util-linux       setpriv, unshare, script             git         what belongs to the checkout
	#   busybox-static   a guest's user space                 procps      sysctl
	#   syslinux, mtools, dosfstools  a disk with a boot loader (SeaBIOS comes with qemu-system-x86)
	#   libvirt-clients, libxml2-utils  virt-xml-validate     qemu-utils  images and disks of other formats
	#   ovmf, sbsigntool UEFI, and boot loaders that are signed
	#   passt, iperf3, iproute2  networks without root, and how fast; links and namespaces
	#   dnsmasq-base, nftables   networks that VMs share
	test_packages="qemu-system-x86 acpica-tools cpio kmod mmdebstrap lzop shellcheck util-linux git busybox-static procps
		syslinux mtools dosfstools libvirt-clients libxml2-utils ovmf sbsigntool qemu-utils passt iperf3 iproute2 dnsmasq-base nftables"
}
