# The test guest that proves KVM: a ROM of its own, run instead of a BIOS, so
# that it is done a few milliseconds after QEMU's start. It goes where a kernel
# goes (protected mode, long mode with paging, vector and VEX instructions, a
# loop long enough to tell a processor from an interpreter, a timer interrupt)
# and reports each step by a letter on port 0xe9, the end on port 0xf4.
#
# The image is loaded so that it ends at 4 GiB. rom() in probe.go adds the jump
# at the reset vector, which leads to the first byte here.
#
# After a change: go generate ./vmm

	.set	ROM, 0xffff0000	# where the image begins in memory
	.set	RAM, 0x20000	# where the 64-bit part copies itself
	.set	PML4, 0x10000
	.set	PDPT, 0x11000
	.set	PD, 0x12000	# four pages, one for each GiB
	.set	IDT, 0x18000
	.set	LAPIC, 0xfee00000
	.set	VECTOR, 0x40

	.macro	step letter
	movb	$\letter, %al
	outb	%al, $0xe9
	.endm

	.text
	.code16
start:
	cli
	step	'a'
	lgdtl	%cs:(gdtr - start)
	movl	%cr0, %eax
	orl	$1, %eax
	movl	%eax, %cr0
	ljmpl	$0x08, $(ROM + protected - start)

	.code32
protected:
	step	'b'
	movw	$0x10, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$0x8000, %esp

	# Identity mapping of 4 GiB in 2 MiB pages.
	cld
	xorl	%eax, %eax
	movl	$PML4, %edi
	movl	$0x2400, %ecx	# both tables, four of PD, and the IDT
	rep stosl
	movl	$(PDPT + 3), PML4
	movl	$(PD + 0x0003), PDPT
	movl	$(PD + 0x1003), PDPT + 8
	movl	$(PD + 0x2003), PDPT + 16
	movl	$(PD + 0x3003), PDPT + 24
	movl	$PD, %edi
	movl	$0x83, %eax
1:	movl	%eax, (%edi)
	addl	$8, %edi
	addl	$0x200000, %eax
	jnc	1b

	movl	%cr4, %eax
	orl	$0x620, %eax	# PAE, OSFXSR, OSXMMEXCPT
	movl	%eax, %cr4
	movl	$PML4, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx	# EFER
	rdmsr
	orl	$0x100, %eax	# LME
	wrmsr
	movl	%cr0, %eax
	andl	$~4, %eax	# EM
	orl	$0x80000002, %eax	# PG, MP
	movl	%eax, %cr0

	# The rest runs from RAM, as guests do.
	movl	$(ROM + long - start), %esi
	movl	$RAM, %edi
	movl	$(end - long), %ecx
	rep movsb
	ljmpl	$0x18, $RAM

	.code64
long:
	step	'c'

	movl	$40, %eax
	movd	%eax, %xmm0
	movl	$2, %eax
	movd	%eax, %xmm1
	paddd	%xmm1, %xmm0
	movd	%xmm0, %eax
	cmpl	$42, %eax
	jne	fail
	xorl	%eax, %eax
	cpuid
	cmpl	$7, %eax
	jb	2f
	movl	$7, %eax
	xorl	%ecx, %ecx
	cpuid
	testl	$0x100, %ebx	# BMI2
	jz	2f
	movl	$21, %eax
	movl	$1, %ecx
	shlx	%ecx, %eax, %edx
	cmpl	$42, %edx
	jne	fail
2:	step	'd'

	movl	$20000000, %ecx
3:	decl	%ecx
	jnz	3b
	step	'e'

	# One interrupt gate, then the local APIC's timer, once.
	leaq	tick(%rip), %rax
	movl	$(IDT + VECTOR * 16), %edi
	movw	%ax, (%rdi)
	movw	$0x18, 2(%rdi)
	movw	$0x8e00, 4(%rdi)
	shrl	$16, %eax
	movw	%ax, 6(%rdi)
	lidt	idtr(%rip)
	movl	$LAPIC, %edi
	movl	$0x1ff, 0xf0(%rdi)	# enabled, spurious vector 0xff
	movl	$0x0b, 0x3e0(%rdi)	# divide by 1
	movl	$VECTOR, 0x320(%rdi)
	xorl	%ebx, %ebx
	movl	$100000, 0x380(%rdi)
4:	sti
	hlt
	cli
	testl	%ebx, %ebx
	jz	4b
	step	'f'

	movb	$0x10, %al	# QEMU exits with 0x10 << 1 | 1 = 33
	outb	%al, $0xf4
fail:	movb	$0x11, %al
	outb	%al, $0xf4
5:	hlt
	jmp	5b

tick:
	incl	%ebx
	movl	$0, 0xb0(%rdi)	# end of interrupt
	iretq

	.balign	8
idtr:
	.word	0xfff
	.quad	IDT
end:

	.balign	8
gdt:
	.quad	0
	.quad	0x00cf9b000000ffff	# 0x08: 32-bit code
	.quad	0x00cf93000000ffff	# 0x10: data
	.quad	0x00af9b000000ffff	# 0x18: 64-bit code
gdtr:
	.word	. - gdt - 1
	.long	ROM + gdt - start
