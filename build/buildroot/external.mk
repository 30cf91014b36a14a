include $(sort $(wildcard $(BR2_EXTERNAL_FERRULE_PATH)/package/*/*.mk))
