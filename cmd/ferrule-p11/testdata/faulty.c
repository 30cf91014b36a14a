/* A PKCS #11 module that hands every call on to SoftHSM and fails where the file named by
 * FAULTY_PLAN says so. The plan is one word:
 *
 *   session   C_SignInit says CKR_DEVICE_ERROR until a new session is opened
 *   module    until C_Finalize
 *   library   until this library is loaded again
 *   always    every time
 *   hang      C_Sign does not return
 *   crash     C_Sign kills the process
 *   flip      C_Sign gives a wrong signature
 *   hardware  the slot is hardware
 *   final     the token says that one more wrong PIN locks it
 *
 * Each call of C_Sign that gives a signature, C_Login and C_Initialize is a letter (s, l, i) in
 * the file FAULTY_PLAN.calls. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long ulong_t;
typedef ulong_t (*function)();

/* CK_FUNCTION_LIST of PKCS #11 2.40: the version, then 68 functions in this order. */
static struct {
	unsigned char major, minor;
	function f[68];
} list, *real;

enum { INITIALIZE = 0, FINALIZE = 1, SLOT_INFO = 5, TOKEN_INFO = 6, OPEN = 12, LOGIN = 18, SIGN_INIT = 42, SIGN = 43 };

static int broken; /* stays until what the plan names has happened */

static int plan(const char *word)
{
	char got[32] = "";
	const char *path = getenv("FAULTY_PLAN");
	int fd = path ? open(path, O_RDONLY) : -1;
	if (fd >= 0) {
		ssize_t n = read(fd, got, sizeof got - 1);
		got[n > 0 ? n : 0] = 0;
		close(fd);
	}
	return strcmp(got, word) == 0;
}

static void note(const char *letter)
{
	char path[4096];
	snprintf(path, sizeof path, "%s.calls", getenv("FAULTY_PLAN"));
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (fd >= 0) {
		if (write(fd, letter, 1) != 1)
			abort();
		close(fd);
	}
}

static ulong_t initialize(void *args)
{
	note("i");
	return real->f[INITIALIZE](args);
}

static ulong_t finalize(void *reserved)
{
	if (plan("module"))
		broken = 0;
	return real->f[FINALIZE](reserved);
}

static ulong_t open_session(ulong_t slot, ulong_t flags, void *app, void *notify, ulong_t *session)
{
	if (plan("session"))
		broken = 0;
	return real->f[OPEN](slot, flags, app, notify, session);
}

static ulong_t slot_info(ulong_t slot, unsigned char *info)
{
	ulong_t rv = real->f[SLOT_INFO](slot, info);
	if (rv == 0 && plan("hardware")) /* description 64, manufacturer 32, flags */
		*(ulong_t *)(info + 96) |= 4;
	return rv;
}

static ulong_t token_info(ulong_t slot, unsigned char *info)
{
	ulong_t rv = real->f[TOKEN_INFO](slot, info);
	if (rv == 0 && plan("final")) /* label 32, manufacturer 32, model 16, serial 16, flags */
		*(ulong_t *)(info + 96) |= 0x20000;
	return rv;
}

static ulong_t login(ulong_t session, ulong_t user, unsigned char *pin, ulong_t length)
{
	note("l");
	return real->f[LOGIN](session, user, pin, length);
}

/* trip breaks the module once for each plan. */
static void trip(void)
{
	static char last[32];
	const char *words[] = { "session", "module", "library" };
	for (int i = 0; i < 3; i++)
		if (plan(words[i])) {
			/* The library forgets last when it is loaded again; the environment does not. */
			const char *done = getenv("FAULTY_DONE");
			if (strcmp(last, words[i]) && !(i == 2 && done && !strcmp(done, "library"))) {
				strcpy(last, words[i]);
				broken = 1;
				if (i == 2)
					setenv("FAULTY_DONE", "library", 1);
			}
			return;
		}
	last[0] = 0;
	broken = 0;
	unsetenv("FAULTY_DONE");
}

static ulong_t sign_init(ulong_t session, void *mechanism, ulong_t key)
{
	trip();
	if (broken || plan("always"))
		return 0x30; /* CKR_DEVICE_ERROR */
	return real->f[SIGN_INIT](session, mechanism, key);
}

static ulong_t sign(ulong_t session, void *data, ulong_t length, unsigned char *out, ulong_t *out_length)
{
	if (out && plan("hang"))
		for (;;)
			pause();
	if (out && plan("crash"))
		abort();
	ulong_t rv = real->f[SIGN](session, data, length, out, out_length);
	if (rv == 0 && out) {
		note("s");
		if (plan("flip"))
			out[5] ^= 1;
	}
	return rv;
}

ulong_t C_GetFunctionList(void **out)
{
	void *lib = dlopen(getenv("FAULTY_MODULE"), RTLD_NOW | RTLD_NODELETE);
	function get = lib ? (function)dlsym(lib, "C_GetFunctionList") : NULL;
	if (!get || get(&real))
		return 5; /* CKR_GENERAL_ERROR */
	memcpy(&list, real, sizeof list);
	list.f[INITIALIZE] = (function)initialize;
	list.f[FINALIZE] = (function)finalize;
	list.f[SLOT_INFO] = (function)slot_info;
	list.f[TOKEN_INFO] = (function)token_info;
	list.f[OPEN] = (function)open_session;
	list.f[LOGIN] = (function)login;
	list.f[SIGN_INIT] = (function)sign_init;
	list.f[SIGN] = (function)sign;
	*out = &list;
	return 0;
}
