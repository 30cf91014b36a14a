/* A Modbus RTU master on libmodbus, for comparison with ours.
 * usage: client PORT UNIT COUNT POLLS. Polls COUNT input registers from 0 on and prints the processor
 * time and the time of one poll in microseconds. */
#include <errno.h>
#include <modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/time.h>

static double us(struct timeval t) { return t.tv_sec * 1e6 + t.tv_usec; }

int main(int argc, char **argv)
{
	if (argc != 5)
		return 2;
	modbus_t *ctx = modbus_new_rtu(argv[1], 115200, 'N', 8, 1);
	if (ctx == NULL)
		return 1;
	modbus_set_slave(ctx, atoi(argv[2]));
	if (modbus_connect(ctx) == -1) {
		fprintf(stderr, "connecting: %s\n", modbus_strerror(errno));
		return 1;
	}
	int count = atoi(argv[3]), polls = atoi(argv[4]);
	uint16_t registers[125];
	struct timeval begin, end;
	struct rusage before, after;
	gettimeofday(&begin, NULL);
	getrusage(RUSAGE_SELF, &before);
	for (int i = 0; i < polls; i++)
		if (modbus_read_input_registers(ctx, 0, count, registers) != count) {
			fprintf(stderr, "reading: %s\n", modbus_strerror(errno));
			return 1;
		}
	getrusage(RUSAGE_SELF, &after);
	gettimeofday(&end, NULL);
	printf("%f %f\n", (us(after.ru_utime) + us(after.ru_stime) - us(before.ru_utime) - us(before.ru_stime)) / polls,
	       (us(end) - us(begin)) / polls);
	modbus_close(ctx);
	modbus_free(ctx);
	return 0;
}
