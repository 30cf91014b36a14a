################################################################################
#
# ferrule
#
################################################################################

# The sources are the project that this external tree is a part of: its commit is the version.
FERRULE_SITE = $(BR2_EXTERNAL_FERRULE_PATH)/../..
FERRULE_SITE_METHOD = local
FERRULE_VERSION_STRING = $(or $(shell git -C $(FERRULE_SITE) describe --tags --always 2>/dev/null),devel)
FERRULE_LICENSE = Apache-2.0
FERRULE_LICENSE_FILES = LICENSE
FERRULE_CPE_ID_VALID = NO

FERRULE_GOMOD = ferrule
FERRULE_BUILD_TARGETS = cmd/ferrule
FERRULE_INSTALL_BINS = ferrule
FERRULE_TAGS = nethttpomithttp2
FERRULE_LDFLAGS = -s -w -buildid= -X main.version=$(FERRULE_VERSION_STRING)
FERRULE_GO_ENV = CGO_ENABLED=0

define FERRULE_USERS
	ferrule -1 ferrule -1 * /var/lib/ferrule - tss,dialout Ferrule agent
endef

define FERRULE_INSTALL_FILES
	$(INSTALL) -D -m 0755 $(@D)/build/systemd/ferrule-launch $(TARGET_DIR)/usr/lib/ferrule/ferrule-launch
	$(INSTALL) -D -m 0644 $(@D)/build/packages/example.toml $(TARGET_DIR)/etc/ferrule/example.toml
	$(INSTALL) -D -m 0644 $(@D)/build/packages/default $(TARGET_DIR)/etc/default/ferrule
	$(INSTALL) -D -m 0644 $(@D)/build/systemd/60-ferrule.rules $(TARGET_DIR)/usr/lib/udev/rules.d/60-ferrule.rules
endef
FERRULE_POST_INSTALL_TARGET_HOOKS += FERRULE_INSTALL_FILES

define FERRULE_PERMISSIONS
	/etc/ferrule d 0770 root ferrule - - - - -
endef

define FERRULE_INSTALL_INIT_SYSTEMD
	$(INSTALL) -D -m 0755 $(@D)/build/systemd/ferrule-reboot $(TARGET_DIR)/usr/lib/ferrule/ferrule-reboot
	$(INSTALL) -D -m 0755 $(@D)/build/systemd/ferrule-again $(TARGET_DIR)/usr/lib/ferrule/ferrule-again
	$(foreach unit,ferrule.service ferrule-revert.service ferrule-reboot.path ferrule-reboot.service, \
		$(INSTALL) -D -m 0644 $(@D)/build/systemd/$(unit) $(TARGET_DIR)/usr/lib/systemd/system/$(unit)
	)
	$(INSTALL) -D -m 0644 $(@D)/build/systemd/ferrule.tmpfiles $(TARGET_DIR)/usr/lib/tmpfiles.d/ferrule.conf
endef

define FERRULE_INSTALL_INIT_OPENRC
	$(INSTALL) -D -m 0755 $(@D)/build/packages/openrc $(TARGET_DIR)/etc/init.d/ferrule
endef

define FERRULE_INSTALL_INIT_SYSV
	$(INSTALL) -D -m 0755 $(@D)/build/buildroot/package/ferrule/S90ferrule $(TARGET_DIR)/etc/init.d/S90ferrule
endef

$(eval $(golang-package))
