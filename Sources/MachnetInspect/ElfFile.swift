import CElf
import Glibc

/// Why a file cannot be inspected.
public struct InspectionError: Error, Equatable, CustomStringConvertible, Sendable {
  /// The file, then what is wrong with it.
  public let description: String
  /// Another user may see what this one may not.
  public let isDenied: Bool

  init(_ path: String, _ problem: String, isDenied: Bool = false) {
    description = "\(path): \(problem)"
    self.isDenied = isDenied
  }
}

/// An open ELF file, read as the loader does: by its program headers. Sections are a bonus that a file may lack.
///
/// Whatever the file says is checked before it is used; a file that lies is an error.
@safe
final class ElfFile {
  let path: String
  let bits: Int
  let isLittleEndian: Bool
  /// ET_*
  let type: Int
  /// EM_*
  let machine: Int
  let privileges: mnelf_privileges
  let segments: [mnelf_segment]
  let sections: [Section]
  /// In the file's order, up to DT_NULL.
  private(set) var dynamic: [(tag: Int64, value: UInt64)] = []
  private(set) var interpreter: String?

  struct Section {
    let name: String
    let type: UInt32
    let offset, size: UInt64
  }

  /// Safety: of `mnelf_open`, closed by `deinit` only; pointers into it do not outlive a method.
  private let file: OpaquePointer
  private let descriptor: Int32
  private var strings: (offset: UInt64, size: Int)?

  /// Limits that no real file comes near.
  private enum Limit {
    static let segments: Int64 = 4096
    static let sections: Int64 = 200_000
    static let dynamicBytes: UInt64 = 1 << 20
    static let stringBytes: UInt64 = 256 << 20
    static let symbols = 4 << 20
    static let name = 4096
  }

  /// - Throws: also for files whose parts lie beyond their end.
  init(path: String) throws(InspectionError) {
    func fail(_ problem: String) -> InspectionError { InspectionError(path, problem) }
    descriptor = unsafe mnelf_open_path(path)
    guard descriptor >= 0 else { throw fail(unsafe String(cString: strerror(-descriptor))) }
    self.path = path
    var privileges = mnelf_privileges()
    let status = unsafe mnelf_privileges(descriptor, &privileges)
    self.privileges = privileges
    var error: UnsafePointer<CChar>?
    guard status == 0, privileges.is_regular, let opened = unsafe mnelf_open(descriptor, &error) else {
      _ = close(descriptor)
      throw fail(privileges.is_regular ? unsafe error.map { unsafe String(cString: $0) } ?? "cannot be read" : "not a file")
    }
    unsafe file = opened
    var header = mnelf_header()
    let hasHeader = unsafe mnelf_header(opened, &header)
    bits = Int(header.bits)
    isLittleEndian = header.little_endian
    type = Int(header.type)
    machine = Int(header.machine)
    // All stored properties have their values before anything throws from here on, so that deinit cleans up.
    let (segments, segmentsAreWhole) = unsafe Self.segments(of: opened)
    self.segments = segments
    sections = unsafe Self.sections(of: opened)
    guard hasHeader, segmentsAreWhole else { throw fail("its program headers cannot be read; is it cut short?") }
    let size = privileges.size
    guard header.section_table <= size, header.section_table_size <= size - header.section_table else {
      throw fail("cut short: its section headers lie beyond its end")
    }
    for segment in segments where segment.type == UInt32(MNELF_PT_LOAD) {
      guard segment.offset <= size, segment.size <= size - segment.offset else {
        throw fail("cut short: a part to be loaded lies beyond its end")
      }
    }
    if let place = segment(MNELF_PT_INTERP) {
      guard place.size > 1, place.size <= UInt64(Limit.name), let bytes = bytes(at: place.offset, Int(place.size)),
        let end = bytes.firstIndex(of: 0)
      else { throw fail("damaged: it names no loader where it should") }
      interpreter = String(decoding: bytes[..<end], as: UTF8.self)
    }
    try readDynamic(fail)
  }

  deinit {
    unsafe mnelf_close(file)
    _ = close(descriptor)
  }

  private static func segments(of file: OpaquePointer) -> ([mnelf_segment], Bool) {
    let count = unsafe mnelf_segment_count(file)
    guard count >= 0, count <= Limit.segments else { return ([], false) }
    var segments: [mnelf_segment] = []
    for index in 0..<Int(count) {
      var segment = mnelf_segment()
      guard unsafe mnelf_segment(file, index, &segment) else { return ([], false) }
      segments.append(segment)
    }
    return (segments, true)
  }

  private static func sections(of file: OpaquePointer) -> [Section] {
    let count = unsafe mnelf_section_count(file)
    guard count > 0, count <= Limit.sections else { return [] }
    var sections: [Section] = []
    for index in 1..<max(1, Int(count)) {
      var section = unsafe mnelf_section()
      guard unsafe mnelf_section(file, index, &section) else { return sections }
      let name = unsafe section.name.map { unsafe String(cString: $0) } ?? ""
      unsafe sections.append(
        Section(name: name, type: section.type, offset: section.offset, size: section.size))
    }
    return sections
  }

  private func segment(_ type: Int) -> mnelf_segment? { segments.first { $0.type == UInt32(type) } }

  var hasDynamicSection: Bool { segment(MNELF_PT_DYNAMIC) != nil }

  private func readDynamic(_ fail: (String) -> InspectionError) throws(InspectionError) {
    guard let place = segment(MNELF_PT_DYNAMIC), place.size > 0 else { return }
    guard place.size <= Limit.dynamicBytes,
      let table = unsafe mnelf_dynamic_table(file, place.offset, Int(place.size))
    else { throw fail("damaged: its dynamic section cannot be read") }
    var index = 0
    var tag: Int64 = 0
    var value: UInt64 = 0
    while unsafe mnelf_dynamic(table, index, &tag, &value), tag != 0 {
      dynamic.append((tag, value))
      index += 1
    }
    guard let address = self[MNELF_DT_STRTAB], let size = self[MNELF_DT_STRSZ] else { return }
    guard let offset = offset(of: address), size <= Limit.stringBytes, unsafe mnelf_bytes(file, offset, Int(size)) != nil
    else { throw fail("damaged: its names cannot be read") }
    strings = (offset, Int(size))
  }

  /// The value of a dynamic tag.
  subscript(tag: Int) -> UInt64? { dynamic.first { $0.tag == Int64(tag) }?.value }

  /// The values of a tag that names strings.
  func names(_ tag: Int) -> [String] {
    dynamic.filter { $0.tag == Int64(tag) }.compactMap { string($0.value) }
  }

  /// Where the file has what is loaded to an address.
  private func offset(of address: UInt64) -> UInt64? {
    for segment in segments where segment.type == UInt32(MNELF_PT_LOAD) {
      let distance = address &- segment.address
      if address >= segment.address && distance < segment.size { return segment.offset + distance }
    }
    return nil
  }

  /// A copy of some bytes; nil when they are not all there.
  func bytes(at offset: UInt64, _ count: Int) -> [UInt8]? {
    guard count > 0, let start = unsafe mnelf_bytes(file, offset, count) else { return nil }
    return unsafe Array(UnsafeRawBufferPointer(start: start, count: count))
  }

  /// A string of the dynamic string table; nil when it is not one.
  func string(_ index: UInt64) -> String? {
    guard let strings, index < UInt64(strings.size), let start = unsafe mnelf_bytes(file, strings.offset, strings.size)
    else { return nil }
    let rest = unsafe UnsafeRawBufferPointer(start: start, count: strings.size)[Int(index)...].prefix(Limit.name)
    guard let end = unsafe rest.firstIndex(of: 0) else { return nil }
    return unsafe String(decoding: rest[..<end], as: UTF8.self)
  }

  /// The names that the loader binds for this file: wanted from others, and offered to them.
  ///
  /// - Throws: when the table that the file promises is not there.
  func dynamicSymbols() throws(InspectionError) -> (wanted: Set<String>, offered: Set<String>) {
    var wanted: Set<String> = []
    var offered: Set<String> = []
    guard let address = self[MNELF_DT_SYMTAB] else { return (wanted, offered) }
    let entry = bits == 64 ? 24 : 16
    guard let offset = offset(of: address), let count = symbolCount(at: address, entry: entry) else {
      throw InspectionError(path, "damaged: its symbols cannot be read")
    }
    if count == 0 { return (wanted, offered) }
    guard let table = unsafe mnelf_symbol_table(file, offset, count * entry) else {
      throw InspectionError(path, "damaged: its symbols cannot be read")
    }
    for index in 1..<max(1, count) {
      var symbol = mnelf_symbol()
      guard unsafe mnelf_symbol(table, index, &symbol), !symbol.local, let name = string(UInt64(symbol.name)),
        !name.isEmpty
      else { continue }
      if symbol.defined { offered.insert(name) } else { wanted.insert(name) }
    }
    return (wanted, offered)
  }

  /// How many symbols there are. Nothing that is loaded says so directly: the section does, else DT_HASH, else the
  /// string table, which every linker puts behind the symbols.
  private func symbolCount(at address: UInt64, entry: Int) -> Int? {
    func limited(_ count: UInt64) -> Int? { count <= UInt64(Limit.symbols) ? Int(count) : nil }
    if let section = sections.first(where: { $0.type == UInt32(MNELF_SHT_DYNSYM) }) {
      return limited(section.size / UInt64(entry))
    }
    if let hash = self[MNELF_DT_HASH].flatMap(offset(of:)), let words = bytes(at: hash, 8) {
      return limited(UInt64(littleEndian32(words, 4)))
    }
    guard let strings = self[MNELF_DT_STRTAB], strings > address else { return nil }
    return limited((strings - address) / UInt64(entry))
  }

  /// The versions that this file needs of a library, by the prefix of their names: `GLIBC_2.34`.
  func neededVersions(of library: String) -> [String] {
    guard let count = self[MNELF_DT_VERNEEDNUM], var place = self[MNELF_DT_VERNEED].flatMap(offset(of:)) else { return [] }
    var versions: [String] = []
    // Elf64_Verneed: version, count (16 bits each), file, aux, next (32 bits each); Elf64_Vernaux: hash, flags, other,
    // name, next.
    for _ in 0..<min(count, 1024) {
      guard let need = bytes(at: place, 16) else { break }
      if string(UInt64(littleEndian32(need, 4))) == library {
        var aux = place + UInt64(littleEndian32(need, 8))
        for _ in 0..<min(1024, UInt64(need[2]) | UInt64(need[3]) << 8) {
          guard let entry = bytes(at: aux, 16) else { break }
          if let name = string(UInt64(littleEndian32(entry, 8))) { versions.append(name) }
          let next = littleEndian32(entry, 12)
          if next == 0 { break }
          aux += UInt64(next)
        }
      }
      let next = littleEndian32(need, 12)
      if next == 0 { break }
      place += UInt64(next)
    }
    return versions
  }

  /// The versions that this file, a library, offers.
  func offeredVersions() -> [String] {
    guard let count = self[MNELF_DT_VERDEFNUM], var place = self[MNELF_DT_VERDEF].flatMap(offset(of:)) else { return [] }
    var versions: [String] = []
    // Elf64_Verdef: version, flags, index, count (16 bits each), hash, aux, next; the first Verdaux has the name.
    for _ in 0..<min(count, 1024) {
      guard let definition = bytes(at: place, 20),
        let name = bytes(at: place + UInt64(littleEndian32(definition, 12)), 8)
      else { break }
      if let version = string(UInt64(littleEndian32(name, 0))) { versions.append(version) }
      let next = littleEndian32(definition, 16)
      if next == 0 { break }
      place += UInt64(next)
    }
    return versions
  }

  /// Calls `body` for every place of `pattern` in the code, with up to so many bytes before it and from it on.
  func findInCode(_ pattern: [UInt8], before: Int, after: Int = 0, _ body: (ArraySlice<UInt8>) -> Void) {
    for segment in segments
    where segment.type == UInt32(MNELF_PT_LOAD) && segment.flags & UInt32(MNELF_PF_X) != 0 && segment.size > 0 {
      let size = Int(segment.size)
      guard let code = unsafe mnelf_bytes(file, segment.offset, size) else { continue }
      var from = 0
      while true {
        let found = Int(unsafe mnelf_find(code, size, from, pattern, pattern.count))
        if found < 0 { break }
        let range = max(0, found - before)..<min(size, found + after)
        body(unsafe Array(UnsafeRawBufferPointer(start: code, count: size)[range])[...])
        from = found + 1
      }
    }
  }

  /// The descriptor of the first note of a kind, such as the Go build id.
  func note(owner: String, type: UInt32) -> [UInt8]? {
    for segment in segments where segment.type == UInt32(MNELF_PT_NOTE) && segment.size <= 1 << 20 {
      guard let bytes = bytes(at: segment.offset, Int(segment.size)) else { continue }
      var place = 0
      // Sizes of name and descriptor, type; both padded to four bytes.
      while place + 12 <= bytes.count {
        let name = Int(littleEndian32(bytes, place)), length = Int(littleEndian32(bytes, place + 4))
        let nameStart = place + 12, start = nameStart + (name + 3) & ~3
        guard start <= bytes.count, length <= bytes.count - start else { break }
        if littleEndian32(bytes, place + 8) == type && bytes[nameStart..<nameStart + name].starts(with: owner.utf8) {
          return Array(bytes[start..<start + length])
        }
        place = start + (length + 3) & ~3
      }
    }
    return nil
  }
}

/// A 32-bit word of a little-endian file.
func littleEndian32(_ bytes: [UInt8], _ offset: Int) -> UInt32 {
  UInt32(bytes[offset]) | UInt32(bytes[offset + 1]) << 8 | UInt32(bytes[offset + 2]) << 16 | UInt32(bytes[offset + 3]) << 24
}
