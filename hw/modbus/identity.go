package modbus

// Objects says which objects of its identification a unit is asked for (Application Protocol
// V1.1b3, 6.21).
type Objects byte

// The read device ID codes of function 43/14.
const (
	BasicObjects    Objects = 1 // 0x00 to 0x02: vendor, product code, revision
	RegularObjects  Objects = 2 // and 0x03 to 0x7F: URL, product, model, application
	ExtendedObjects Objects = 3 // and 0x80 to 0xFF, the vendor's own
	OneObject       Objects = 4
)

// The objects that have a name.
const (
	VendorName  byte = 0
	ProductCode byte = 1
	Revision    byte = 2
	VendorURL   byte = 3
	ProductName byte = 4
	ModelName   byte = 5
	Application byte = 6
)

// meiDeviceID is the one MEI type of function 43 that is spoken; the other, 13, is CANopen's.
const meiDeviceID = 14

// identityHead is how many bytes of an answer of function 43 come before its objects.
const identityHead = 8

// Object is one object of a unit's identification: its bytes, ASCII by the specification.
type Object struct {
	ID    byte
	Value []byte
}

// Identification is an answer of function 43, cut into its objects.
func (r Response) Identification() []Object {
	var list []Object
	for data := r.Data; len(data) >= 2 && len(data) >= 2+int(data[1]); data = data[2+int(data[1]):] {
		list = append(list, Object{ID: data[0], Value: data[2 : 2+int(data[1])]})
	}
	return list
}

// identityLength is ResponseLength for function 43, whose answers give the length of each object
// and none of the whole.
func identityLength(p []byte) int {
	switch {
	case len(p) >= 3 && p[2] != meiDeviceID:
		return -1
	case len(p) < identityHead:
		return 0
	}
	at := identityHead
	for range p[identityHead-1] {
		if len(p) < at+2 {
			return 0
		}
		if at += 2 + int(p[at+1]); at+2 > MaxFrame {
			return -1
		}
	}
	return at + 2
}
