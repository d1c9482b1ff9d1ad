/* Preloaded into a program on a processor that can intercept CPUID (cpuid_fault in /proc/cpuinfo), this answers as AMD's
   Zen 4 does in what torch's libraries ask for: vendor, family, caches, and no AMX, AVX512-FP16 or AVX-VNNI. They then
   choose their kernels as they would there. See arch_prctl(2) and the CPUID chapters of both vendors' manuals. */

#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define SIGNATURE 0x00A10F11 /* family 25, model 17 */

static void intercept(int on) { syscall(SYS_arch_prctl, ARCH_SET_CPUID, !on); }

static void answer(uint32_t leaf, uint32_t sub, uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d)
{
	static const uint32_t kind[] = {0x4121, 0x4122, 0x4143, 0x4163}; /* L1 data, L1 code, L2, L3 */
	static const uint32_t ways[] = {8, 8, 8, 16}, sets[] = {64, 64, 2048, 32768};

	__cpuid_count(leaf, sub, *a, *b, *c, *d);
	if (leaf == 0 || leaf == 0x80000000) { /* AuthenticAMD, and the last leaf of this range */
		*a = leaf ? 0x80000028 : 0x10;
		*b = 0x68747541, *d = 0x69746e65, *c = 0x444d4163;
	} else if (leaf == 1 || leaf == 0x80000001) {
		*a = SIGNATURE;
		if (leaf != 1)
			*c |= 1u << 22; /* has the leaf of caches below */
	} else if (leaf == 4) { /* Intel's leaf of caches */
		*a = *b = *c = *d = 0;
	} else if (leaf == 7 && sub == 0) {
		*d &= ~(1u << 22 | 1u << 23 | 1u << 24 | 1u << 25); /* AMX, AVX512-FP16 */
	} else if (leaf == 7 && sub == 1) {
		*a &= ~(1u << 4); /* AVX-VNNI */
	} else if (leaf > 0x80000008) {
		*a = *b = *c = *d = 0;
		if (leaf == 0x8000001D && sub < 4)
			*a = kind[sub], *b = (ways[sub] - 1) << 22 | 63, *c = sets[sub] - 1;
	}
}

static void on_fault(int number, siginfo_t *info, void *context)
{
	greg_t *at = ((ucontext_t *)context)->uc_mcontext.gregs;
	const uint8_t *code = (const uint8_t *)at[REG_RIP];
	uint32_t a, b, c, d;

	if (code[0] != 0x0f || code[1] != 0xa2) { /* not CPUID: a fault of the program's own */
		signal(number, SIG_DFL);
		return;
	}
	intercept(0);
	answer((uint32_t)at[REG_RAX], (uint32_t)at[REG_RCX], &a, &b, &c, &d);
	intercept(1);
	at[REG_RAX] = a, at[REG_RBX] = b, at[REG_RCX] = c, at[REG_RDX] = d, at[REG_RIP] += 2;
}

/* The first four letters of the vendor, as a program is told. */
uint32_t vendor(void)
{
	uint32_t a, b, c, d;

	__cpuid(0, a, b, c, d);
	return b;
}

__attribute__((constructor)) static void begin(void)
{
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};

	sigaction(SIGSEGV, &action, 0);
	intercept(1);
}
