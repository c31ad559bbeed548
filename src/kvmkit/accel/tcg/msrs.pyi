# Everything here is C; see msrs.pxd.
