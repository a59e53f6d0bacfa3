import CElf

/// The calls by which a program reaches its sockets, and what the preload makes of them.
struct CallTable {
  /// Names that the preload library exports: its own symbol table is the one source.
  let intercepted: Set<String>

  init(preload: ElfFile) throws(InspectionError) {
    intercepted = try preload.dynamicSymbols().offered
    guard intercepted.contains("sendto") && intercepted.contains("recvmsg") else {
      throw InspectionError(preload.path, "exports no socket calls; it is not Machnet's preload library")
    }
  }

  /// Calls that make, fill or empty a datagram socket. A program that imports none of them has nothing to intercept.
  static let ofSockets: Set<String> = [
    "socket", "send", "sendto", "sendmsg", "sendmmsg", "__sendmmsg", "recv", "recvfrom", "recvmsg", "recvmmsg",
    "__recv_chk", "__recvfrom_chk",
  ]

  /// Calls that move a socket's data, or wait for it, past the preload. What they touch goes by the kernel.
  static let past: [String: String] = [
    "sendfile": "moves file data to a socket in the kernel", "sendfile64": "moves file data to a socket in the kernel",
    "splice": "moves data in the kernel", "vmsplice": "moves data in the kernel", "tee": "moves data in the kernel",
    "aio_read": "glibc's threads read by themselves", "aio_read64": "glibc's threads read by themselves",
    "aio_write": "glibc's threads write by themselves", "aio_write64": "glibc's threads write by themselves",
    "lio_listio": "glibc's threads read and write by themselves",
    "lio_listio64": "glibc's threads read and write by themselves",
    "io_submit": "the kernel reads and writes by itself (libaio)",
    "getaddrinfo": "libc's resolver keeps its questions to the kernel",
    "gethostbyname": "libc's resolver keeps its questions to the kernel",
    "gethostbyname_r": "libc's resolver keeps its questions to the kernel",
    "gethostbyname2": "libc's resolver keeps its questions to the kernel",
    "res_query": "libc's resolver keeps its questions to the kernel",
    "res_send": "libc's resolver keeps its questions to the kernel",
    "__res_nsend": "libc's resolver keeps its questions to the kernel",
  ]

  /// Libraries whose own system calls are what the preload stands in front of.
  static func isLibc(_ name: String) -> Bool {
    name.hasPrefix("libc.so.") || name.hasPrefix("ld-linux") || name.hasPrefix("libpthread.so.")
      || name.hasPrefix("librt.so.") || name.hasPrefix("libresolv.so.") || name.hasPrefix("libdl.so.")
      || name.hasPrefix("libanl.so.")
  }
}

/// System calls that a file makes by itself, without libc.
struct SystemCalls {
  /// Instructions that enter the kernel.
  var instructions = 0
  /// Calls of sockets and waits whose number is loaded just before the instruction, by name.
  var named: [String: Int] = [:]
  /// The numbers of io_uring_setup and io_uring_enter are loaded for such instructions or for libc's syscall().
  var usesRing = false

  /// - Parameter callsByNumber: the file imports libc's syscall().
  init(of file: ElfFile, callsByNumber: Bool) {
    #if arch(x86_64)
    // syscall; mov $NUMBER, %eax before it. Where the bytes 0f 05 stand inside another instruction, no such
    // move stands before them.
    let (instruction, width): ([UInt8], Int) = ([0x0f, 0x05], 1)
    let numbers: [UInt32: String] = [
      41: "socket", 42: "connect", 44: "sendto", 45: "recvfrom", 46: "sendmsg", 47: "recvmsg", 49: "bind",
      299: "recvmmsg", 307: "sendmmsg", 7: "poll", 271: "ppoll", 232: "epoll_wait", 281: "epoll_pwait", 441: "epoll_pwait2",
      233: "epoll_ctl",
    ]
    func number(_ before: ArraySlice<UInt8>) -> UInt32? {
      var place = before.endIndex - 5
      while place >= before.startIndex {
        if before[place] == 0xb8 && before[place + 3] == 0 && before[place + 4] == 0 {
          return UInt32(before[place + 1]) | UInt32(before[place + 2]) << 8
        }
        place -= 1
      }
      return nil
    }
    // For syscall(3), which is variadic, the number is the first argument and %eax counts vector registers:
    // mov $NUMBER, %edi, and near it xor %eax, %eax or mov $0, %eax.
    func ringArgument(_ number: UInt32) -> [UInt8] { [0xbf, UInt8(number & 0xff), UInt8(number >> 8), 0, 0] }
    func isVariadicCall(_ around: ArraySlice<UInt8>) -> Bool {
      let clears = around.indices.dropLast(4).contains {
        around[$0...].starts(with: [0x31, 0xc0]) || around[$0...].starts(with: [0xb8, 0, 0, 0, 0])
      }
      return clears && around.contains(0xe8)
    }
    #else
    // svc #0; mov w8 or x8, #NUMBER before it.
    let (instruction, width): ([UInt8], Int) = ([0x01, 0x00, 0x00, 0xd4], 4)
    let numbers: [UInt32: String] = [
      198: "socket", 200: "bind", 203: "connect", 206: "sendto", 207: "recvfrom", 211: "sendmsg", 212: "recvmsg",
      243: "recvmmsg", 269: "sendmmsg", 73: "ppoll", 21: "epoll_ctl", 22: "epoll_pwait", 441: "epoll_pwait2",
    ]
    func number(_ before: ArraySlice<UInt8>) -> UInt32? {
      var place = before.endIndex - 4
      while place >= before.startIndex {
        let word = littleEndian32(Array(before[place..<place + 4]), 0)
        if word & 0x7fe0_001f == 0x5280_0008 { return word >> 5 & 0xffff }
        place -= 4
      }
      return nil
    }
    // For syscall(3): mov w0 or x0, #NUMBER.
    func ringArgument(_ number: UInt32) -> [UInt8] {
      (0..<4).map { UInt8(truncatingIfNeeded: (0x5280_0000 | number << 5) >> (8 * $0)) }
    }
    func isVariadicCall(_ around: ArraySlice<UInt8>) -> Bool { true }
    #endif
    var ringNumbers: Set<UInt32> = []
    file.findInCode(instruction, before: 24 * width) { before in
      instructions += 1
      guard let number = number(before) else { return }
      if 425...426 ~= number { ringNumbers.insert(number) }
      if let name = numbers[number] { named[name, default: 0] += 1 }
    }
    if callsByNumber {
      for number: UInt32 in 425...426 {
        file.findInCode(ringArgument(number), before: 24, after: 32) { if isVariadicCall($0) { ringNumbers.insert(number) } }
      }
    }
    usesRing = ringNumbers.count == 2
  }
}
