"""pymodbus as the foreign peer of the tests, in ASCII.

usage: peer.py server PORT   a unit at address 17: coils and discrete inputs hold (address % 3 == 0),
                             registers their address + 1000 (input) or + 2000 (holding), up to 500.
                             Says "ready", ends with its input.
       peer.py client PORT   uses every function it knows on unit 3 of the tests, and says "done".
"""
import asyncio
import os
import sys
import threading

from pymodbus.client import ModbusSerialClient
from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext, ModbusSlaveContext
from pymodbus.device import ModbusDeviceIdentification
from pymodbus.file_message import ReadFifoQueueRequest
from pymodbus.framer.ascii_framer import ModbusAsciiFramer
from pymodbus.mei_message import ReadDeviceInformationRequest
from pymodbus.server import StartAsyncSerialServer


async def server(port):
    block = ModbusSequentialDataBlock
    unit = ModbusSlaveContext(
        di=block(0, [i % 3 == 0 for i in range(500)]),
        co=block(0, [i % 3 == 0 for i in range(500)]),
        ir=block(0, [i + 1000 for i in range(500)]),
        hr=block(0, [i + 2000 for i in range(500)]),
        zero_mode=True,
    )
    identity = ModbusDeviceIdentification(info_name={
        "VendorName": "pymodbus", "ProductCode": "PM", "MajorMinorRevision": "3.0", "ModelName": "peer"})
    s = await StartAsyncSerialServer(
        context=ModbusServerContext(slaves={17: unit}, single=False), identity=identity,
        framer=ModbusAsciiFramer, port=port, baudrate=19200, timeout=1, defer_start=True)
    await s.start()
    print("ready", flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    await s.serve_forever()


def client(port):
    c = ModbusSerialClient(port, framer=ModbusAsciiFramer, baudrate=19200, timeout=3)
    assert c.connect()
    unit = 3
    good = lambda r: r if not r.isError() else sys.exit(f"{r}")
    assert good(c.read_coils(0, 40, unit)).bits[:40] == [i % 3 & 1 == 1 for i in range(40)]
    assert good(c.read_discrete_inputs(0, 40, unit)).bits[:40] == [i % 5 & 1 == 1 for i in range(40)]
    assert good(c.read_input_registers(10, 125, unit)).registers == list(range(10, 135))
    assert good(c.read_holding_registers(10, 20, unit)).registers == list(range(10, 30))
    good(c.write_coil(0, True, unit))
    good(c.write_register(1, 0xBEEF, unit))
    good(c.write_coils(10, [True, True, False, False, True], unit))
    good(c.write_registers(20, [7, 8, 9], unit))
    good(c.mask_write_register(1, 0xFF00, 0x12, unit=unit))
    r = good(c.readwrite_registers(read_address=20, read_count=3, write_address=21, write_registers=[99], unit=unit))
    assert r.registers == [7, 99, 9], r.registers
    r = good(c.execute(ReadDeviceInformationRequest(1, 0, unit=unit)))
    assert r.information[0] == b"Ferrule", r.information
    r = c.read_holding_registers(9000, 1, unit)
    assert r.isError() and r.exception_code == 2, r
    c.close()
    print("done", flush=True)


if sys.argv[1] == "server":
    asyncio.run(server(sys.argv[2]))
else:
    client(sys.argv[2])
