class PvClock:
    tsc_khz: int
    system_msr: int
    wall_msr: int
