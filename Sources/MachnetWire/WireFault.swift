/// Why bytes are not the packet that they were taken for.
public enum WireFault: UInt8, Error, CaseIterable, Sendable {
  /// Fewer bytes than the header needs or its length field promises.
  case truncated
  /// An IP version other than 4.
  case badVersion
  /// An IPv4 header length below 20 bytes or beyond the packet's total length.
  case badHeaderLength
  /// A total length (IPv4) or length (UDP) that does not even cover the header.
  case badTotalLength
  /// A fragment that RFC 791 rules out: not the last one and no multiple of 8 bytes, or reaching beyond 65,535 bytes.
  case badFragment
  case badChecksum
  /// ARP for another hardware or protocol than Ethernet and IPv4, or another protocol than the one asked for.
  case unsupported
}
