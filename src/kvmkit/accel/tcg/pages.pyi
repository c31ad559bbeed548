# Everything here is C; see pages.pxd.
