SUMMARY = "mTLS agent that joins the serial lines of an IoT gateway to the cloud"
DESCRIPTION = "Keeps the private key of the device in a TPM 2.0, bridges serial sensors onto an mTLS session, takes signed updates"
HOMEPAGE = "https://ferrule.invalid/"
SECTION = "net"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"
CVE_PRODUCT = "ferrule"
PV = "0.0+git"

# Where your copy of the repository is, without a scheme, and which commit of it is built: to be set in
# local.conf or in the distribution.
FERRULE_REPOSITORY ?= "git.example.com/ferrule.git"
FERRULE_PROTOCOL ?= "https"
FERRULE_BRANCH ?= "main"
FERRULE_COMMIT ?= "INVALID"
SRC_URI = "git://${FERRULE_REPOSITORY};protocol=${FERRULE_PROTOCOL};branch=${FERRULE_BRANCH};destsuffix=ferrule"
SRCREV = "${FERRULE_COMMIT}"

S = "${UNPACKDIR}/ferrule"

# Go 1.26 is needed: of the layers named in layer.conf only the later ones have it, the others take it from
# meta-go or by GOVERSION.
inherit go systemd useradd

GO_IMPORT = "ferrule"
GO_INSTALL = "${GO_IMPORT}/cmd/ferrule"
CGO_ENABLED = "0"
export CGO_ENABLED
# The modules of go.sum, whose digests Go checks, come over the network unless GOPROXY or a vendor folder
# says otherwise.
do_compile[network] = "1"

FERRULE_VERSION ?= "${PV}"
FERRULE_LDFLAGS = "-buildid= -X main.version=${FERRULE_VERSION}"

do_compile() {
    cd ${S}
    ${GO} build -trimpath -buildvcs=false -tags nethttpomithttp2 -ldflags "${FERRULE_LDFLAGS}" -o ${B}/ferrule ./cmd/ferrule
}

do_install() {
    install -d ${D}${bindir} ${D}${nonarch_libdir}/ferrule ${D}${sysconfdir}/ferrule ${D}${sysconfdir}/default
    install -m 0755 ${B}/ferrule ${D}${bindir}/ferrule
    for script in ferrule-launch ferrule-reboot ferrule-again; do
        install -m 0755 ${S}/build/systemd/$script ${D}${nonarch_libdir}/ferrule/$script
    done
    install -m 0644 ${S}/build/packages/example.toml ${D}${sysconfdir}/ferrule/example.toml
    install -m 0644 ${S}/build/packages/default ${D}${sysconfdir}/default/ferrule

    install -d ${D}${systemd_system_unitdir} ${D}${nonarch_libdir}/udev/rules.d ${D}${nonarch_libdir}/tmpfiles.d
    for unit in ferrule.service ferrule-revert.service ferrule-reboot.path ferrule-reboot.service; do
        install -m 0644 ${S}/build/systemd/$unit ${D}${systemd_system_unitdir}/$unit
    done
    install -m 0644 ${S}/build/systemd/60-ferrule.rules ${D}${nonarch_libdir}/udev/rules.d/60-ferrule.rules
    install -m 0644 ${S}/build/systemd/ferrule.tmpfiles ${D}${nonarch_libdir}/tmpfiles.d/ferrule.conf
    chgrp ferrule ${D}${sysconfdir}/ferrule
    chmod 0770 ${D}${sysconfdir}/ferrule
}

FILES:${PN} += "${nonarch_libdir}/ferrule ${nonarch_libdir}/udev/rules.d ${nonarch_libdir}/tmpfiles.d ${systemd_system_unitdir}"
CONFFILES:${PN} = "${sysconfdir}/ferrule/example.toml ${sysconfdir}/default/ferrule"

SYSTEMD_SERVICE:${PN} = "ferrule.service ferrule-reboot.path ferrule-reboot.service ferrule-revert.service"

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system tss; --system dialout; --system ferrule"
USERADD_PARAM:${PN} = "--system --gid ferrule --groups tss,dialout --no-create-home --home-dir ${localstatedir}/lib/ferrule --shell ${base_sbindir}/nologin ferrule"

RRECOMMENDS:${PN} += "kernel-module-tpm-tis kernel-module-tpm-tis-spi"
