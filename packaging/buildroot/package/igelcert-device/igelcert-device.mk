################################################################################
#
# igelcert-device
#
################################################################################

IGELCERT_DEVICE_VERSION = 0.1.0
# the tree that this external tree stands in
IGELCERT_DEVICE_SITE = $(BR2_EXTERNAL_IGELCERT_PATH)/../..
IGELCERT_DEVICE_SITE_METHOD = local
IGELCERT_DEVICE_LICENSE = Apache-2.0
IGELCERT_DEVICE_LICENSE_FILES = LICENSE
IGELCERT_DEVICE_DEPENDENCIES = \
	host-pkgconf \
	host-python-cffi \
	host-python-cython \
	host-python-setuptools \
	host-python3 \
	openssl \
	python-cffi \
	python3

# PKG_PYTHON_ENV has the target's compiler, pkg-config and strip, and makes Python build for the target
define IGELCERT_DEVICE_INSTALL_TARGET_CMDS
	cd $(@D) && $(PKG_PYTHON_ENV) scripts/stage \
		--python $(HOST_DIR)/bin/python3 \
		--sitedir /usr/lib/python$(PYTHON3_VERSION_MAJOR)/site-packages \
		$(TARGET_DIR)
endef

# before the network, and after network and clock
define IGELCERT_DEVICE_INSTALL_INIT_SYSV
	ln -sf igel-certs $(TARGET_DIR)/etc/init.d/S30igel-certs
	ln -sf rmagent $(TARGET_DIR)/etc/init.d/S60rmagent
endef

# the timer is for images without the resident agent
define IGELCERT_DEVICE_INSTALL_INIT_SYSTEMD
	mkdir -p $(TARGET_DIR)/usr/lib/systemd/system-preset
	printf '%s\n' 'disable igel-certs.timer' \
		>$(TARGET_DIR)/usr/lib/systemd/system-preset/50-igelcert.preset
endef

$(eval $(generic-package))
