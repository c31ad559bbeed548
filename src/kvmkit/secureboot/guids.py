"""The GUIDs that variable stores are made of, and their names in edk2 and the UEFI specification."""

from __future__ import annotations

from uuid import UUID

# ---- firmware volumes (edk2: MdeModulePkg/Include/Guid) ----
NV_DATA = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
AUTHENTICATED_VARIABLES = UUID("aaf32c78-947b-439a-a180-2e144ec37792")

# ---- whose a variable is ----
GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
SECURE_BOOT_ENABLE = UUID("f0a30bc7-af08-4556-99c4-001009c93a44")
CUSTOM_MODE = UUID("c076ec0c-7028-4399-a072-71ee5c448b9f")

# ---- kinds of signatures (UEFI 2.10, 32.4.1) ----
CERT_X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
CERT_SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")
CERT_PKCS7 = UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")

# ---- whose a signature is ----
MICROSOFT = UUID("77fa9abd-0359-4d32-bd60-28f4e78f784b")
OVMF_ENROLL = UUID("a0baa8a3-041d-48a8-bc87-c36d121b5e3d")
KVMKIT = UUID("95b67db8-a120-4fdb-9eaf-4713f5c81d7f")
"""The owner of certificates that kvmkit enrolled from a user's files."""

NAMES = {
    GLOBAL: "EfiGlobalVariable",
    IMAGE_SECURITY: "EfiImageSecurityDatabase",
    SECURE_BOOT_ENABLE: "EfiSecureBootEnableDisable",
    CUSTOM_MODE: "EfiCustomModeEnable",
    CERT_X509: "EfiCertX509",
    CERT_SHA256: "EfiCertSha256",
    CERT_PKCS7: "EfiCertPkcs7",
    MICROSOFT: "Microsoft",
    OVMF_ENROLL: "OvmfEnrollDefaultKeys",
    KVMKIT: "kvmkit",
    UUID("eb704011-1402-11d3-8e77-00a0c969723b"): "MtcVendor",
    UUID("4c19049f-4137-4dd3-9c10-8b97a83ffdfa"): "EfiMemoryTypeInformation",
    UUID("4b47d616-a8d6-4552-9d44-ccad2e0f4cf9"): "IScsiConfig",
    UUID("59324945-ec44-4c0d-b1cd-9db139df070c"): "EfiIScsiInitiatorNameProtocol",
    UUID("d9bee56e-75dc-49d9-b4d7-b534210f637a"): "EfiCertDb",
    UUID("04b37fe8-f6ae-480b-bdd5-37d98c5e89aa"): "EdkiiVarErrorFlag",
    UUID("9073e4e0-60ec-4b6e-9903-4c223c260f3c"): "EfiVendorKeysNv",
    UUID("fd2340d0-3dab-4349-a6c7-3b4f12b48eae"): "EfiTlsCaCertificate",
    UUID("605dab50-e046-4300-abb6-3dd810dd8b23"): "Shim",
    UUID("4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"): "LoaderInfo",
}


def name_of(guid: UUID) -> str:
    """Its name, or itself in the usual form."""
    return NAMES.get(guid, str(guid))
