SUMMARY = "Device certificates from a company's PKI: device agent"
DESCRIPTION = "Gets X.509 certificates for this device over EST or SCEP, through a proxy that holds the CA's \
credentials; installs them and the CAs, and renews in time. They are kept in /wfs, which must survive a reboot."
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

# The tree that this layer stands in; EXTERNALSRC:pn-igelcert-device names another.
EXTERNALSRC ?= "${@os.path.realpath(os.path.join(d.getVar('THISDIR'), '../../../..'))}"

inherit externalsrc pkgconfig setuptools3-base systemd update-rc.d

DEPENDS = "openssl python3-cffi-native python3-cython-native python3-setuptools-native"
RDEPENDS:${PN} = " \
    python3-cffi \
    python3-core \
    python3-crypt \
    python3-datetime \
    python3-difflib \
    python3-fcntl \
    python3-html \
    python3-io \
    python3-json \
    python3-math \
    python3-netclient \
    python3-syslog \
    python3-tomllib \
"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

# the class has made Python build for the target; it also strips
do_install() {
    cd ${S}
    STRIP=true scripts/stage --python ${PYTHON} --sitedir ${PYTHON_SITEPACKAGES_DIR} ${D}
    if ${@bb.utils.contains('DISTRO_FEATURES', 'sysvinit', 'true', 'false', d)}; then
        install -d ${D}${sysconfdir}/rcS.d
        ln -s ../init.d/igel-certs ${D}${sysconfdir}/rcS.d/S38igel-certs
    fi
}

# igel-certs.timer is for images without the resident agent.
SYSTEMD_SERVICE:${PN} = "rmagent.service igel-certs-install-cas.service"
INITSCRIPT_NAME = "rmagent"
INITSCRIPT_PARAMS = "defaults 60 10"

FILES:${PN} += " \
    ${PYTHON_SITEPACKAGES_DIR}/igelcert \
    ${datadir}/igelcert \
    ${datadir}/udhcpc \
    ${nonarch_libdir}/igelcert \
    ${nonarch_libdir}/tmpfiles.d \
    ${systemd_system_unitdir} \
"
CONFFILES:${PN} = "${sysconfdir}/igelcert/device.toml"
