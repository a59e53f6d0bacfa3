import java.net.DatagramPacket;
import java.net.DatagramSocket;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.SocketTimeoutException;
import java.util.Arrays;

/** UDP echo with DatagramSocket; used as blocking_echo.py. */
public class SocketEcho {
  static byte[] payload(int number, int size) {
    byte[] bytes = new byte[size];
    for (int i = 0; i < size; i++) bytes[i] = (byte) (i < 4 ? number >> (24 - 8 * i) : (number + i - 4) % 251);
    return bytes;
  }

  public static void main(String[] args) throws Exception {
    InetSocketAddress server = new InetSocketAddress(InetAddress.getByName(args[1]), Integer.parseInt(args[2]));
    byte[] buffer = new byte[65535];
    if (args[0].equals("server")) {
      DatagramSocket socket = new DatagramSocket(server);
      while (true) {
        DatagramPacket packet = new DatagramPacket(buffer, buffer.length);
        socket.receive(packet);
        socket.send(packet);
      }
    }
    int count = Integer.parseInt(args[3]);
    int[] sizes = Arrays.stream(args[4].split(",")).mapToInt(Integer::parseInt).toArray();
    try (DatagramSocket socket = new DatagramSocket()) {
      socket.setSoTimeout(1000);
      for (int number = 0; number < count; number++) {
        byte[] sent = payload(number, sizes[number % sizes.length]);
        boolean echoed = false;
        for (int attempt = 0; attempt < 10 && !echoed; attempt++) {
          socket.send(new DatagramPacket(sent, sent.length, server));
          try {
            while (!echoed) {
              DatagramPacket packet = new DatagramPacket(buffer, buffer.length);
              socket.receive(packet);
              echoed = packet.getSocketAddress().equals(server)
                  && Arrays.equals(Arrays.copyOf(buffer, packet.getLength()), sent);
            }
          } catch (SocketTimeoutException late) {
            // sent again
          }
        }
        if (!echoed) {
          System.err.println("no echo of datagram " + number + ", " + sent.length + " bytes");
          System.exit(1);
        }
      }
    }
    System.out.println("ok " + count);
  }
}
