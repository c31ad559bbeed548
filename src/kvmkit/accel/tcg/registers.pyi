# Everything here is C; see registers.pxd.
