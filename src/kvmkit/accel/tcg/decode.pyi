# Everything here is C; see decode.pxd.
