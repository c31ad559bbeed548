"""Networks of the host's for VMs: a bridge with NAT, DHCP and DNS. Made by `kvmkit network`, as root."""
