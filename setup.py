"""The compiled part of the build. Everything else about the package stands in pyproject.toml.

A module with a .pxd beside its .py is compiled; there is no other list.
"""

import multiprocessing
import os
from pathlib import Path

import unicorn
from Cython.Build import cythonize
from setuptools import Extension, setup

SOURCE = Path("src")
UNICORN = Path(unicorn.__file__).parent

# Functions of the software CPU that kvmkit.accel.tcg.cpu replaces; see docs/tcg.md.
REPLACED = [
    "x86_cpu_exec_interrupt",
    "helper_rdmsr",
    "helper_wrmsr",
    "helper_read_crN",
    "helper_write_crN",
    "helper_raise_interrupt",
    "raise_interrupt",
    "raise_exception_err",
    "do_vmexit",
    "helper_read_eflags",
    "cpu_get_tsc",
    "helper_pause",
    "helper_syscall",
    "helper_sysenter",
    *(f"helper_{direction}{width}" for direction in ("in", "out") for width in "bwl"),
    "cpu_x86_cpuid",
    "tlb_protect_code",
    "tlb_unprotect_code",
    "tlb_reset_dirty_by_vaddr",
    "tlb_set_page_with_attrs",
    "x86_ldl_phys",
    "x86_ldq_phys",
]


def extension(source: Path) -> Extension:
    name = ".".join(source.relative_to(SOURCE).with_suffix("").parts)
    optimize = os.environ.get("KVMKIT_OPTIMIZE", "-O2")
    options: dict[str, list[str]] = {"extra_compile_args": [optimize, "-g0", "-Wno-unused-function"]}
    if name == "kvmkit.accel.tcg.cpu":
        options["extra_objects"] = [str(UNICORN / "lib" / "libunicorn.a")]
        options["include_dirs"] = [str(UNICORN / "include")]
        options["libraries"] = ["m", "pthread"]
        options["extra_link_args"] = [f"-Wl,--wrap={name}_x86_64" for name in REPLACED] + [
            "-Wl,-Bsymbolic",
            "-Wl,--exclude-libs,ALL",
            *([] if os.environ.get("KVMKIT_SYMBOLS") else ["-s"]),  # the static library is most of the file
        ]
    return Extension(name, [str(source)], **options)


compiled = sorted(pxd.with_suffix(".py") for pxd in SOURCE.rglob("*.pxd") if pxd.with_suffix(".py").exists())
processors = len(os.sched_getaffinity(0))
setup(
    ext_modules=cythonize(
        [extension(source) for source in compiled],
        language_level=3,
        compiler_directives={"boundscheck": True, "cdivision": True, "embedsignature": True},
        build_dir="build/cython",
        # Processes that are started by other means would run this file again.
        nthreads=processors if multiprocessing.get_start_method() == "fork" else 0,
    ),
    options={"build_ext": {"parallel": processors}},
)
