include $(sort $(wildcard $(BR2_EXTERNAL_IGELCERT_PATH)/package/*/*.mk))
