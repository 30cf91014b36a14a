/* A Modbus RTU unit made with libmodbus, the peer of the whole-path test.
 * usage: modbus_server TTY BAUD UNIT
 * Input register i holds i * 7 + 3, holding register i holds i, at the start. Every write
 * that reaches the unit is printed as "write ADDRESS COUNT". Runs until SIGTERM. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include <modbus.h>

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: modbus_server TTY BAUD UNIT\n");
		return 2;
	}
	modbus_t *line = modbus_new_rtu(argv[1], atoi(argv[2]), 'N', 8, 1);
	modbus_mapping_t *map = modbus_mapping_new(256, 256, 256, 256);
	if (line == NULL || map == NULL || modbus_set_slave(line, atoi(argv[3])) != 0 ||
	    modbus_connect(line) != 0) {
		fprintf(stderr, "modbus_server: %s\n", modbus_strerror(errno));
		return 1;
	}
	for (int i = 0; i < 256; i++) {
		map->tab_input_registers[i] = i * 7 + 3;
		map->tab_registers[i] = i;
	}
	puts("ready");
	fflush(stdout);
	for (;;) {
		uint8_t query[MODBUS_RTU_MAX_ADU_LENGTH];
		int n = modbus_receive(line, query);
		if (n <= 0)
			continue;
		if (query[1] == 0x06 || query[1] == 0x10) {
			int count = query[1] == 0x06 ? 1 : query[4] << 8 | query[5];
			printf("write %d %d\n", query[2] << 8 | query[3], count);
			fflush(stdout);
		}
		modbus_reply(line, query, n, map);
	}
}
