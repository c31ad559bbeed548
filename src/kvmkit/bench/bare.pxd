from kvmkit.accel.kvm.vcpu cimport KvmVcpu
