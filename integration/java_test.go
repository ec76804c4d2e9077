package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// javaSource locks by FileChannel: "hold PATH" or "try PATH".
const javaSource = `import java.nio.channels.*;
import java.nio.file.*;

public class Locker {
    public static void main(String[] args) throws Exception {
        try (FileChannel file = FileChannel.open(Path.of(args[1]),
                StandardOpenOption.READ, StandardOpenOption.WRITE, StandardOpenOption.CREATE)) {
            if (args[0].equals("hold")) {
                try (FileLock lock = file.lock()) {
                    System.out.print("held\n");
                    System.out.flush();
                    while (System.in.read() >= 0) { }
                }
                return;
            }
            for (long end = System.nanoTime() + 500_000_000L; System.nanoTime() < end; Thread.sleep(20)) {
                try (FileLock lock = file.tryLock()) {
                    if (lock != null) {
                        return;
                    }
                }
            }
            System.exit(9);
        }
    }
}
`

// javaLockers compiles the program once; starting from the source would do so every time.
func javaLockers(t *testing.T) map[string]locker {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "Locker.java")
	must(t, os.WriteFile(source, []byte(javaSource), 0o600))
	out, err := exec.Command("java", "--module", "jdk.compiler/com.sun.tools.javac.Main", "-d", dir, source).CombinedOutput()
	if err != nil {
		t.Fatalf("this test needs java with a compiler: install Debian's package default-jdk-headless (%v: %s)", err, out)
	}
	java := []string{"java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-cp", dir, "Locker"}
	command := func(how string) []string { return append(append([]string{}, java...), how, "{}") }
	return map[string]locker{"Java FileChannel": {hold: command("hold"), try: command("try"), busy: 9, limit: half}}
}
