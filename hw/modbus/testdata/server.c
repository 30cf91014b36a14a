/* A Modbus RTU unit on libmodbus, as the foreign peer of the client's tests.
 * usage: server PORT UNIT. Prints "ready", then answers until its input ends.
 * Coils and discrete inputs hold (address % 3 == 0), registers their address + 1000 (input) or
 * + 2000 (holding); the tables end at address 500. */
#include <errno.h>
#include <modbus.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	modbus_t *ctx = modbus_new_rtu(argv[1], 115200, 'N', 8, 1);
	modbus_mapping_t *map = modbus_mapping_new(500, 500, 500, 500);
	if (ctx == NULL || map == NULL)
		return 1;
	modbus_set_slave(ctx, atoi(argv[2]));
	for (int i = 0; i < 500; i++) {
		map->tab_bits[i] = map->tab_input_bits[i] = i % 3 == 0;
		map->tab_input_registers[i] = i + 1000;
		map->tab_registers[i] = i + 2000;
	}
	if (modbus_connect(ctx) == -1) {
		fprintf(stderr, "connecting: %s\n", modbus_strerror(errno));
		return 1;
	}
	puts("ready");
	fflush(stdout);
	struct pollfd fds[2] = {{.fd = modbus_get_socket(ctx), .events = POLLIN}, {.fd = 0, .events = POLLIN}};
	for (;;) {
		uint8_t query[MODBUS_RTU_MAX_ADU_LENGTH];
		if (poll(fds, 2, -1) < 0 || fds[1].revents)
			break;
		int n = modbus_receive(ctx, query);
		if (n > 0)
			modbus_reply(ctx, query, n, map);
	}
	modbus_mapping_free(map);
	modbus_close(ctx);
	modbus_free(ctx);
	return 0;
}
